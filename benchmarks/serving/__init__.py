"""The service over HTTP, alone and compared with other inference servers."""
