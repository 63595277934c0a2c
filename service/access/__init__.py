"""Access control: API keys, and TLS for both servers."""
