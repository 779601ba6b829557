"""Attacks of other modules, by name: in a suite, checked, and listed."""

from dataclasses import dataclass, replace

import pytest
import torch

from attacker.presets import build_attack, catalogue, suite
from fl_sim import registry
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import PartError, register
from tests.attacker.observing import digits, observe


@dataclass(frozen=True)
class Flat:
    """Guesses one brightness, whatever was sent."""

    level: float = 0.5
    label: int = 0

    def applies(self, observations):
        return len(observations) > 0

    def reconstruct(self, observations, *, seed, public=None, progress=None, device="cpu"):
        return [self.guess(one) for one in observations]

    def guess(self, one):
        images = torch.full((one.work.images, *one.model.shape), self.level)
        labels = torch.full((one.work.images,), self.label)
        where = (one.trial, one.round, one.partition, "mine")
        return Reconstruction(*where, images, labels, 0.0, "converged", "squared", 0)


@pytest.fixture
def attacks():
    """Register attacks for one test."""
    registered = registry._registered["attack"]
    before = dict(registered)
    yield lambda name, part: register("attack", name)(part)
    registered.clear()
    registered.update(before)


@pytest.fixture
def seen():
    images, labels = digits(2)
    return observe(images, labels, "uniform:bits=4")


def test_a_registered_attack_is_built_by_its_spec_and_its_reconstructions_bear_its_name(
    attacks, seen
):
    attacks("flat", Flat)
    found = build_attack("flat:level=0.25,label=7").reconstruct(seen, seed=0)
    assert [(r.attack, r.partition, int(r.labels)) for r in found] == [
        ("flat", 0, 7),
        ("flat", 1, 7),
    ]
    assert all((r.images == 0.25).all() for r in found)


def test_a_suite_takes_a_registered_attack_where_it_explains_the_payload_best(attacks, seen):
    attacks("flat", Flat)
    images, labels = digits(2)

    @dataclass(frozen=True)
    class Oracle(Flat):
        """Guesses the truth, which no real attack can."""

        def guess(self, one):
            truth = images[one.partition][None], labels[one.partition][None]
            return replace(super().guess(one), images=truth[0], labels=truth[1])

    attacks("oracle", Oracle)
    mixed = suite("cell:iterations=5", "oracle", "flat")
    assert mixed.uses_public
    for one, image in zip(mixed.reconstruct(seen, seed=0), images, strict=True):
        assert torch.equal(one.images[0], image)


def test_public_images_are_given_unless_the_attack_says_that_it_uses_none(attacks, seen):
    attacks("flat", Flat)
    given = build_attack("flat")
    assert (given.uses_public, given.needs_public) == (True, False)

    class Needy(Flat):
        needs_public = True

        def guess(self, one):
            raise AssertionError("it has no public images")

    class Blind(Flat):
        uses_public = False

    attacks("needy", Needy)
    attacks("blind", Blind)
    assert not build_attack("blind").uses_public
    found = suite("needy", "blind").reconstruct(seen, seed=0)
    assert len(found) == len(seen)
    public = PublicImages(*digits(3))
    with pytest.raises(PartError, match="no public images"):
        suite("needy", "blind").reconstruct(seen, seed=0, public=public)


def broken(name, value):
    class Broken(Flat):
        def guess(self, one):
            return replace(super().guess(one), **{name: value})

    return Broken


def returning(method, value):
    return type("Broken", (Flat,), {method: lambda *_, **__: value})


@pytest.mark.parametrize(
    ("part", "fault"),
    [
        (returning("reconstruct", []), "returned 0 reconstructions for 2 observations"),
        (returning("reconstruct", None), "returned an object of type NoneType"),
        (returning("reconstruct", [torch.zeros(1)] * 2), "returned a list of Tensor"),
        (returning("applies", None), "returned None from applies"),
        (broken("images", torch.zeros(1, 1, 7, 8)), r"shape \(1, 1, 7, 8\) .* \(1, 1, 8, 8\)"),
        (broken("images", torch.zeros(2, 1, 8, 8)), r"images are \(2, 1, 8, 8\), labels \(1,\)"),
        (broken("images", torch.full((1, 1, 8, 8), torch.nan)), "not finite for round 1, client 0"),
        (broken("images", torch.zeros(1, 1, 8, 8).double()), "images are torch.float64"),
        (broken("images", [0.5]), "cannot be stored"),
        (broken("labels", torch.tensor([10])), "labels outside 0 to 9"),
        (broken("labels", torch.tensor([0.5])), "labels torch.float32"),
        (broken("loss", torch.tensor(0.5)), "loss is not of type float"),
        (broken("status", "perfect"), "status is 'perfect', not one of"),
        (broken("objective", "square"), "objective=square is not allowed"),
        (broken("partition", 7), "of round 1, client 7 for round 1, client 0"),
    ],
)
def test_what_a_faulty_attack_returns_is_refused_in_one_line(attacks, seen, part, fault):
    attacks("faulty", part)
    attack = build_attack("faulty:label=3")

    def run():
        assert attack.applies(seen)
        return attack.reconstruct(seen, seed=0)

    with pytest.raises(PartError, match=fault) as caught:
        run()
    assert str(caught.value).startswith("attacks = 'faulty:label=3': the attack returned")
    assert "\n" not in str(caught.value)


def test_an_attack_that_raises_is_named(attacks, seen):
    class Raises(Flat):
        def guess(self, one):
            return one.truth

    attacks("raises", Raises)
    with pytest.raises(PartError, match="attacks = 'raises': the attack raised AttributeError: "):
        build_attack("raises").reconstruct(seen, seed=0)


def test_names_and_parameters_of_registered_attacks_are_refused_like_those_of_presets(attacks):
    attacks("flat", Flat)
    for spec, fault in [
        ("flatt", r"no attack 'flatt'; one of dlg, .*, flat; did you mean 'flat'\?"),
        ("dgl", r"did you mean 'dlg'\?"),
        ("flat:levels=1", r"no parameter 'levels'; one of level, label; did you mean 'level'\?"),
        ("flat:level=x", "level=x is not a number"),
        ("flat(cell)", "wraps no other part"),
        ("cell(flat)", "wraps no other part"),
    ]:
        with pytest.raises(ValueError, match=fault):
            build_attack(spec)


def test_an_attack_without_a_method_or_with_the_name_of_a_preset_is_refused(attacks):
    attacks("half", type("Half", (), {"applies": lambda *_: True}))
    with pytest.raises(ValueError, match=r"'half' of 'tests.attacker.test_plugins' has no method"):
        build_attack("half")
    attacks("cell", Flat)
    with pytest.raises(ValueError, match="'cell' of .* has the name of a preset"):
        build_attack("cell")


def test_a_registered_attack_is_listed_with_its_sentence_and_parameters(attacks):
    attacks("flat", Flat)
    assert catalogue()[-1] == {
        "name": "flat",
        "summary": "Guesses one brightness, whatever was sent.",
        "values": {"level": 0.5, "label": 0},
    }


def test_an_attack_that_reads_bytes_that_are_held_back_is_named(attacks, seen):
    class Peeks(Flat):
        def guess(self, one):
            parse_quantizer(one.payload.spec).decode(one.payload)
            return super().guess(one)

    attacks("peeks", Peeks)
    with pytest.raises(PartError, match="attacks = 'peeks': the attack raised PayloadError"):
        suite("peeks").reconstruct(seen, seed=0)
