"""Captions of whole splits, and what they are worth."""
