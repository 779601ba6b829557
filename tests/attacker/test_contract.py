"""Our attacks pass the check that other people's attacks do."""

import pytest
import torch

from attacker.presets import ATTACK_NAMES, build_attack
from fl_sim.models import ModelSpec
from fl_sim.plans import Ares, Fishing, Imprint, Loki, Thresholds, Traps
from fl_sim.testing import check_attack
from fl_sim.updates.local_update import LocalWork, flat_model
from tests.attacker.observing import SPEC, digits, initial_weights, observe

SHORT = {
    "dlg": "dlg:iterations=20,restarts=0",
    "free_labels": "free_labels:iterations=20,restarts=0",
    "free_order": "free_order:iterations=20",
    "group": "group:iterations=20",
    "active_fishing": "active_fishing:iterations=20,restarts=0",
    "inverting_gradients": "inverting_gradients:iterations=20",
}
SLOW = {"inversion_network", "inversion_network_cell", "suite"}


def planted(plan, model="mlp", quantizer="none"):
    """Return what is seen of clients that train what a malicious server planted."""
    spec = ModelSpec(plan.model(model), SPEC.shape, SPEC.classes)
    weights = plan.weights(spec, initial_weights(spec).detach(), digits(40, seed=1)[0])
    assert weights.shape == (flat_model(spec).layout.size,)
    facts = {"spec": spec, "weights": weights.detach(), "server": plan.spec}
    return observe(*digits(3), quantizer, **facts)


def with_thresholds():
    """Return what is seen of clients whose weights are a bank of thresholds."""
    return planted(Thresholds(batch=1), "cnn", "sign")


def fished():
    """Return what is seen of a client with three images, two of the class that is fished for."""
    spec = ModelSpec("mlp", SPEC.shape, SPEC.classes)
    plan, (images, _) = Fishing(target=3), digits(3)
    weights = plan.weights(spec, initial_weights(spec).detach(), images)
    facts = {"spec": spec, "weights": weights, "server": plan.spec}
    return observe(images, torch.tensor([3, 1, 3]), work=LocalWork(batch_size=3), **facts)


def units_off():
    """Return what is seen of clients that train a ReLU layer on the pixels."""
    spec = ModelSpec("mlp:activation=relu", SPEC.shape, SPEC.classes)
    return observe(*digits(3), spec=spec, weights=initial_weights(spec).detach())


def repeated():
    """Return what is seen of clients that use the same images in three rounds."""
    return observe(*digits(2), "stochastic:bits=4", rounds=3)


def shuffling():
    """Return what is seen of clients that train for two epochs over shuffled batches."""
    return observe(*digits(4), work=LocalWork("delta", 1, 0.1, 4, 2, shuffled=True))


SEEN = {
    "rgap": lambda: observe(*digits(2)),
    "spear": units_off,
    "spear_cell": units_off,
    "cocktail_party": units_off,
    "cocktail_party_cell": units_off,
    "active_imprint": lambda: planted(Imprint(8)),
    "active_traps": lambda: planted(Traps(share=0.1), "mlp:activation=relu"),
    "active_ares": lambda: planted(Ares(), "mlp:activation=relu"),
    "active_fishing": fished,
    "active_loki": lambda: planted(Loki(clients=2, bins=8)),
    "active_thresholds": with_thresholds,
    "active_thresholds_cell": with_thresholds,
    "free_order": shuffling,
    "averaging": repeated,
    "joint": repeated,
    "synthetic_joint": repeated,
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in ATTACK_NAMES],
)
def test_every_attack_passes_the_check_for_others(name):
    check_attack(build_attack(SHORT.get(name, name)), SEEN.get(name, lambda: None)())
