"""Flower's PyTorch quick-start on digits, with quantized uplinks and an audit."""
