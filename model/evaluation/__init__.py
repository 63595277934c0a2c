"""COCO metrics and the accuracy reports built on them."""
