"""Edition 5: rows of thin outlines, which resemble the bars of a code in light on dark."""
