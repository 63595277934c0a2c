"""The detector: turns an encoded image into detections, for every protocol."""
