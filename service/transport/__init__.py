"""HTTP and gRPC servers: what every adapter of a protocol shares."""
