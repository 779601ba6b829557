"""Reconstructions against the truth: scores, baselines, gates, statistics."""
