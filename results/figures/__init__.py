"""Curves, charts and galleries."""
