"""Readers of layers that sort images into bins: differences of neighbouring units."""
