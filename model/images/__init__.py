"""Images: encoded bytes to RGB pixels at the network's input size (torch-free)."""
