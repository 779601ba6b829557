"""Attacks that reconstruct private batches from observations, and from nothing else."""
