"""Communication between the edge and its engines: shared-memory slots and a message pipe."""
