"""The only module of the ground floor that names modules of upper floors; a test imports them."""

PREFIX = __name__.removesuffix("fl_sim.floors")
"""What stands before the name of a floor: nothing, or ``fl_quantization_privacy.`` (setup.py)."""

TRAINING_CODE = (f"{PREFIX}clients.app", f"{PREFIX}server.training")
"""Modules that determine, with all they import, what a training produces."""

ATTACK_CODE = (f"{PREFIX}server.auditing.jobs",)
"""The same of an attack."""

SCORING_CODE = (f"{PREFIX}results.scores.victims",)
"""The same of scores."""
