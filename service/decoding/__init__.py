"""Decoding in processes of its own: a broken decoder or a hostile image ends only its process."""
