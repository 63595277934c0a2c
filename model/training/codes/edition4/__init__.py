"""Edition 4: rows of thin things that lean, hang or fan out, as bars of codes do not."""
