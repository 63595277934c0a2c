"""One call from an encoded image to its detections, whatever the protocol."""
