"""Keeps engine processes alive: starts, watches and replaces them."""
