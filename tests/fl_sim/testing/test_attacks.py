"""The check of attacks finds what is broken; that of ours is in ``tests/attacker``."""

from dataclasses import dataclass, replace
from itertools import count

import pytest
import torch

from fl_sim import register
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.testing import ContractError, check_attack, observe
from fl_sim.updates.local_update import LocalWork

_numbers = count()


@dataclass(frozen=True)
class Grey:
    """An attack that keeps all promises: guesses grey images."""

    label: int = 0

    def applies(self, observations):
        return True

    def reconstruct(self, observations, *, seed, public=None, progress=None, device="cpu"):
        return [self.guess(one) for one in observations]

    def guess(self, one):
        images = torch.full((one.work.images, *one.model.shape), 0.5)
        labels = torch.full((one.work.images,), self.label)
        where = one.trial, one.round, one.partition, "grey"
        return Reconstruction(*where, images, labels, 0.0, "converged", "squared", 0)


class TooFew(Grey):
    def reconstruct(self, observations, **more):
        return super().reconstruct(observations, **more)[1:]


class OtherOrder(Grey):
    def reconstruct(self, observations, **more):
        return super().reconstruct(observations, **more)[::-1]


class ChangesWeights(Grey):
    def guess(self, one):
        one.weights[0] = 7
        return super().guess(one)


class Draws(Grey):
    def guess(self, one):
        drawn = next(_numbers) / 1000
        return replace(super().guess(one), images=torch.full((1, 1, 8, 8), drawn))


class DrawsGlobally(Grey):
    def guess(self, one):
        return replace(super().guess(one), images=torch.rand(1, 1, 8, 8))


class OneImage(Grey):
    def guess(self, one):
        return replace(super().guess(one), images=torch.full((1, 8, 8), 0.5))


class OneChannelMore(Grey):
    def guess(self, one):
        return replace(super().guess(one), images=torch.full((1, 2, 8, 8), 0.5))


class NotFinite(Grey):
    def guess(self, one):
        return replace(super().guess(one), images=torch.full((1, 1, 8, 8), torch.nan))


class Doubles(Grey):
    def guess(self, one):
        return replace(super().guess(one), images=torch.full((1, 1, 8, 8), 0.5).double())


class FloatLabels(Grey):
    def guess(self, one):
        return replace(super().guess(one), labels=torch.zeros(1))


class HighLabels(Grey):
    def guess(self, one):
        return replace(super().guess(one), labels=torch.full((1,), 10))


class OtherStatus(Grey):
    def guess(self, one):
        return replace(super().guess(one), status="done")


class WholeNumber(Grey):
    def guess(self, one):
        return replace(super().guess(one), loss=0)


class OtherObjective(Grey):
    def guess(self, one):
        return replace(super().guess(one), objective="euclid")


class NotSure(Grey):
    def applies(self, observations):
        return None


class NotHere(Grey):
    def applies(self, observations):
        return False


class ReadsPayloads(Grey):
    def guess(self, one):
        parse_quantizer(one.payload.spec).decode(one.payload)
        return super().guess(one)


BROKEN = {
    TooFew: "2 reconstructions of 3 observations",
    OtherOrder: "in another order",
    ChangesWeights: "changes its observations",
    Draws: "finds something else for the same seed",
    DrawsGlobally: "changes the global random state of PyTorch",
    OneImage: "a reconstruction cannot be stored: images are",
    OneChannelMore: r"shape \(1, 2, 8, 8\), not \(1, 1, 8, 8\)",
    NotFinite: "or are not finite",
    Doubles: "cannot be stored: images are torch.float64",
    FloatLabels: "cannot be stored: .*labels torch.float32",
    HighLabels: r"labels \[10\] are not from 0 to 9",
    OtherStatus: "cannot be stored: .*status is 'done'",
    WholeNumber: "cannot be stored: loss is not of type float",
    OtherObjective: "cannot be stored: objective=euclid is not allowed",
    NotSure: "applies returns None",
    NotHere: "does not apply to these observations",
    ReadsPayloads: "read observation.cell instead",
}


def registered(kind):
    name = f"broken{next(_numbers)}"
    register("attack", name)(kind)
    return name


def test_an_attack_that_keeps_all_promises_passes():
    check_attack(Grey())
    check_attack(f"{registered(Grey)}:label=3")


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_named(kind):
    with pytest.raises(ContractError, match=BROKEN[kind]) as caught:
        check_attack(registered(kind))
    assert str(caught.value).startswith("broken")


def test_observations_of_other_work_can_be_given():
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    check_attack(Grey(), observe(images, labels, "sign", LocalWork(batch_size=3)))
    with pytest.raises(ContractError, match="images are .1, 1, 8, 8., labels .3,."):
        check_attack(Draws(), observe(images, labels, "sign", LocalWork(batch_size=3)))


def test_clients_that_repeat_their_images_may_be_guessed_once():
    class Once(Grey):
        def reconstruct(self, observations, **more):
            last = {one.partition: one for one in observations}
            return super().reconstruct(list(last.values()), **more)

    images, labels = torch.rand(2, 1, 8, 8), torch.arange(2)
    check_attack(Once(), observe(images, labels, rounds=3))
    check_attack(Grey(), observe(images, labels, rounds=3))
    once_each = replace(observe(images, labels, rounds=1)[0], round=2)
    with pytest.raises(ContractError, match="1 reconstructions of 2 observations"):
        check_attack(Once(), [*observe(images[:1], labels[:1]), once_each])
