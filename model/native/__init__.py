"""Compiles and loads C++ libraries, at first use or ahead of time; without torch."""
