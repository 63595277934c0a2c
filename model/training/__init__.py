"""Training of the detectors: matching, losses, denoising, data, the loop and its evaluation."""
