"""The structure of image files, one module per format.

Each module reads a file's structure without decoding pixels. It returns the part that the pixels
need, for the decoder, and the orientation from the metadata, which the decoder never reads: so
metadata of any size, or broken, neither costs time nor makes an image unreadable.
"""
