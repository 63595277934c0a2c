"""Decoding threads and their memory, and drawing of results."""
