"""Quantizers that wrap another: pruning, bits by layer, error feedback."""
