"""Quantizers that wrap others: clipping, pruning, bits per layer, error feedback."""
