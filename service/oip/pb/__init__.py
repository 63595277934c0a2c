"""Message classes of the Open Inference Protocol, written by proto/generate.sh."""
