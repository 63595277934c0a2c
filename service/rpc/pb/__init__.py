"""Message classes of litedetr.v1, written by proto/generate.sh."""
