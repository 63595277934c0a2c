"""The attention and resize kernels by themselves."""
