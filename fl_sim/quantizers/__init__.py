"""Quantizers by spec string, e.g. ``parse_quantizer("uniform:bits=4")``."""
