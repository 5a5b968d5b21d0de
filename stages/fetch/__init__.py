"""Captioned pictures from their source, brought into one form."""
