"""Checks of parts: what quantizers, attacks, models and others promise, as functions for tests."""

from fl_sim.testing.attacks import check_attack, observe
from fl_sim.testing.contract import ContractError
from fl_sim.testing.data import check_dataset, check_partitioner
from fl_sim.testing.metrics import check_metric
from fl_sim.testing.models import check_model
from fl_sim.testing.plans import check_server_plan
from fl_sim.testing.quantizers import check_quantizer

__all__ = [
    "ContractError",
    "check_attack",
    "check_dataset",
    "check_metric",
    "check_model",
    "check_partitioner",
    "check_quantizer",
    "check_server_plan",
    "observe",
]
