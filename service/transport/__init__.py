"""HTTP and gRPC servers, and what the adapters of each protocol share."""
