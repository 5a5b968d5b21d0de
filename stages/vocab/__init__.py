"""The words of the training captions, and captions as numbers."""
