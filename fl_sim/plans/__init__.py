"""Server plans: what a server does to the model and its weights before it hands them out."""

from fl_sim.plans.ares import Ares
from fl_sim.plans.fishing import Fishing
from fl_sim.plans.imprint import Imprint
from fl_sim.plans.inconsistent import Inconsistent
from fl_sim.plans.inputs import planted_weights
from fl_sim.plans.loki import Loki
from fl_sim.plans.plan import Curious, ServerPlan, parse_plan, plants_in
from fl_sim.plans.thresholds import Thresholds
from fl_sim.plans.traps import Traps

__all__ = [
    "Ares",
    "Curious",
    "Fishing",
    "Imprint",
    "Inconsistent",
    "Loki",
    "ServerPlan",
    "Thresholds",
    "Traps",
    "parse_plan",
    "planted_weights",
    "plants_in",
]
