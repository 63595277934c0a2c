"""Tiles of a large image: where they lie, and one result from the detections in them."""
