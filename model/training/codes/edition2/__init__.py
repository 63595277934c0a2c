"""Edition 2 of the generator: more small codes, and more patterns that resemble codes."""
