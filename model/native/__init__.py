"""C++ that is compiled on the machine it runs on, or ahead; torch-free, as the edge needs it."""
