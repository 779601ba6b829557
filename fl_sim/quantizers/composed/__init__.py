"""Quantizers that wrap others: pruning, bits per layer, error feedback."""
