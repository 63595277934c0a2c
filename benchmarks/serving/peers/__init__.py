"""One adapter for each inference server that this service is compared with."""
