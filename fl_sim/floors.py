"""Where the floors are imported from: by their own names, or as a wheel's copy of them."""

PREFIX = __name__.removesuffix("fl_sim.floors")
"""What stands before the name of a floor: nothing, or ``fl_quantization_privacy.`` (setup.py)."""
