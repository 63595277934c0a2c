"""Small image files of every kind that common programs write, with the pixels to expect."""
