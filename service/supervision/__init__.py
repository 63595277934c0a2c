"""Starts, monitors and restarts the engine processes."""
