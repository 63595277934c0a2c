"""The network: backbone, encoder, decoder and their layers."""
