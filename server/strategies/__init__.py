"""Flower strategies, most of which wrap another: averaging, curious, dequantize, sampling."""
