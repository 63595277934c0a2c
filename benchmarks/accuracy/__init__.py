"""Detection accuracy of the default model, and the sample images of the documentation."""
