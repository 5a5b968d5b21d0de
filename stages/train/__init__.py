"""The decoder: how it is built, learns, decodes and is kept."""
