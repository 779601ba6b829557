"""Quantizers whose own randomness gives differential privacy."""
