"""Whole networks on a CPU."""
