"""Dynamic batching: which images run together, and when."""
