"""Attacks that read the images off the payload: what they return, and where they apply."""

import pytest
import torch

from attacker.presets import PRESETS, build_attack
from attacker.readers.reading import Reading
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec
from fl_sim.plans import Ares, Curious, Imprint, Loki, Thresholds, Traps
from tests.attacker.observing import digits, initial_weights, observe

READINGS = tuple(name for name, preset in PRESETS.items() if preset.kind is Reading)
MODELS = {
    "analytic": "mlp",
    "spear": "mlp:activation=relu",
    "cocktail_party": "mlp",
    "active_imprint": Imprint().model("lenet"),
    "active_traps": "mlp:activation=relu",
    "active_loki": Loki().model("lenet"),
    "active_thresholds": "cnn",
    "active_ares": "mlp:activation=relu",
}
PLANS = {
    "active_imprint": Imprint(),
    "active_traps": Traps(),
    "active_loki": Loki(),
    "active_thresholds": Thresholds(batch=1),
    "active_ares": Ares(),
}


def observed(name, quantizer="uniform:bits=4"):
    """Return four observations of single images that a reading applies to, and public images."""
    images, labels = digits(120)
    spec = ModelSpec(MODELS.get(name, "lenet"), (1, 8, 8), 10)
    weights = initial_weights(spec)
    plan = PLANS.get(name, Curious())
    facts = {"weights": plan.weights(spec, weights, images[4:]), "server": plan.spec}
    seen = observe(images[:4], labels[:4], quantizer, spec=spec, **facts)
    return seen, PublicImages(images[4:], labels[4:])


def test_the_presets_that_read():
    passive = ("analytic", "spear", "cocktail_party", "learned", "inversion_network", "synthetic")
    assert set(READINGS) == {*passive, *PLANS}


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_is_where_a_search_from_the_same_start_begins(name, monkeypatch):
    monkeypatch.setattr("attacker.readers.learned._STEPS", 5)
    seen, public = observed(name)
    reading = build_attack(name)
    assert reading.applies(seen)
    search = build_attack(f"idlg:start={reading.start},iterations=1,warmup=0,restarts=0")
    read, started = (a.reconstruct(seen, seed=0, public=public) for a in (reading, search))
    for one, other in zip(read, started, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert (one.loss, one.status) == (pytest.approx(other.loss), other.status)
        assert (one.attack, one.objective, one.evaluations) == (name, "squared", 0)


def test_a_reading_that_explains_its_payload_converged_and_another_stalled():
    exact = build_attack("analytic").reconstruct(observed("analytic", "none")[0], seed=0)
    assert {one.status for one in exact} == {"converged"}
    vague = build_attack("synthetic").reconstruct(observed("synthetic", "none")[0], seed=0)
    assert {one.status for one in vague} == {"stalled"}


def test_progress_counts_to_the_end_batch_by_batch():
    seen, _ = observed("analytic")
    calls = []
    build_attack("analytic:batch=3").reconstruct(seen, seed=0, progress=lambda *c: calls.append(c))
    assert calls == [(3, 4), (4, 4)]


def test_one_payload_that_cannot_be_read_does_not_lose_the_others(monkeypatch):
    seen, _ = observed("analytic")
    read = Reading._read

    def fails_on_the_second(self, problems, context):
        if (1, 1) in problems.keys:
            raise ValueError("unreadable")
        return read(self, problems, context)

    monkeypatch.setattr(Reading, "_read", fails_on_the_second)
    with pytest.warns(RuntimeWarning, match="'analytic' failed: unreadable"):
        found = build_attack("analytic").reconstruct(seen, seed=0)
    assert [one.status == "diverged" for one in found] == [False, True, False, False]
    assert (found[1].images == 0.5).all()


def test_only_learned_readings_need_public_images():
    needing = {name for name in READINGS if build_attack(name).needs_public}
    assert needing == {"learned", "inversion_network"}
