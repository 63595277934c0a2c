"""Edition 3: add-ons next to retail codes, and rows of labels of one design."""
