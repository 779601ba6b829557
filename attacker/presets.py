"""Attacks by name, as data; any of their values can be edited in a spec string."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

from attacker.attack import Attack
from attacker.choice import Suite
from attacker.matching.matching import Matching
from attacker.matching.optimizers import LBFGS, SignedAdam
from attacker.plugins import plugin_attack, plugin_entries
from attacker.readers.fishing import FishingSearch
from attacker.readers.reading import Reading
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.registry import module_of, names
from fl_sim.specs import Spec, default_parameters, parse_parameters, split_parameters
from fl_sim.suggestions import one_of

# Published as L-BFGS without line search from N(0, 1): `dlg:start=normal,warmup=0,restarts=0`.
_DLG = {
    "objective": "squared",
    "warmup": 100,
    "restarts": 2,
    "iterations": 1200,
    "history": 100,
    "target": 1e-9,
}
# Where noise stays unexplained, a loss falls by little to the end: hence the small progress.
_CELL = {"objective": "cell", "tv": 3e-4, "box": 1.0, "iterations": 100, "progress": 1e-4}
_TUNED = {"warmup": 50, "restarts": 4, "progress": 1e-4, "prior": "tuned"}


class Preset(NamedTuple):
    """An attack as data: what it does, where it departs from the defaults, and its kind."""

    summary: str
    values: Mapping[str, Any]
    kind: type[Matching] | type[Reading] | type[FishingSearch] = Matching


PRESETS: Mapping[str, Preset] = {
    "dlg": Preset(
        "Searches for images and labels whose update matches the payload.",
        {**_DLG, "labels": "joint"},
    ),
    "idlg": Preset(
        "As dlg, with the labels read from the gradient of the last layer.",
        {**_DLG, "labels": "analytic"},
    ),
    "inverting_gradients": Preset(
        "Matches the direction of the update only, and prefers smooth images.",
        {
            "objective": "cosine",
            "tv": 0.01,
            "box": 1.0,
            "optimizer": "signed_adam",
            "iterations": 4800,
        },
    ),
    "rgap": Preset(
        "Solves the layers one after another for their inputs, then searches from there.",
        {**_DLG, "start": "recursive", "iterations": 600, "warmup": 0},
    ),
    "analytic": Preset(
        "Reads the image off the gradient of the first linear layer.",
        {"start": "linear_layer"},
        Reading,
    ),
    "spear": Preset(
        "Separates the images of a batch in the gradient of a linear layer before a ReLU.",
        {"start": "spear"},
        Reading,
    ),
    "spear_cell": Preset(
        "As spear, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "spear", "iterations": 30},
    ),
    "cocktail_party": Preset(
        "Unmixes the images of a batch in the gradient of a first linear layer.",
        {"start": "cocktail_party"},
        Reading,
    ),
    "cocktail_party_cell": Preset(
        "As cocktail_party, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "cocktail_party", "iterations": 30},
    ),
    "active_imprint": Preset(
        "Reads images off a layer that the server planted (the active threat model).",
        {"start": "imprint"},
        Reading,
    ),
    "active_traps": Preset(
        "Reads images off trap weights that the server planted (the active threat model).",
        {"start": "traps"},
        Reading,
    ),
    "active_thresholds": Preset(
        "Reads images off thresholds that the server set in the weights (the active threat model).",
        {"start": "thresholds"},
        Reading,
    ),
    "active_thresholds_cell": Preset(
        "As active_thresholds, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "thresholds", "iterations": 30},
    ),
    "active_ares": Preset(
        "Recovers images from activations that the server separated (the active threat model).",
        {"start": "ares"},
        Reading,
    ),
    "active_fishing": Preset(
        "Searches for the images that the server fished for (the active threat model).",
        {},
        FishingSearch,
    ),
    "active_loki": Preset(
        "Reads images of all clients off the sum of their updates (the active threat model).",
        {"start": "loki"},
        Reading,
    ),
    "learned": Preset(
        "Predicts the image by a regression fitted on public images.",
        {"start": "public"},
        Reading,
    ),
    "learned_cell": Preset(
        "As learned, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "public", "iterations": 30},
    ),
    "inversion_network": Preset(
        "Predicts the image by a network trained on public images.",
        {"start": "public_network"},
        Reading,
    ),
    "inversion_network_cell": Preset(
        "As inversion_network, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "public_network", "iterations": 30},
    ),
    "synthetic": Preset(
        "Predicts the image by a regression fitted on random textures, without any data.",
        {"start": "synthetic"},
        Reading,
    ),
    "synthetic_cell": Preset(
        "As synthetic, then a short search inside the quantizer's cell.",
        {**_CELL, "start": "synthetic", "iterations": 30},
    ),
    "averaging": Preset(
        "Averages a client's payloads for the same weights, then matches the mean.",
        {
            "objective": "scaled",
            "grouping": "averaged",
            "tv": 1.0,
            "box": 1.0,
            "iterations": 150,
            **_TUNED,
        },
    ),
    "scaled": Preset(
        "Matches the payload, with each mismatch counted in steps of the quantizer.",
        {
            "objective": "scaled",
            "tv": 0.1,
            "box": 1.0,
            "iterations": 150,
            **_TUNED,
        },
    ),
    "cell": Preset(
        "Accepts every update that quantizes to the payload, and prefers smooth images.",
        {**_CELL, **_TUNED},
    ),
    "free_labels": Preset(
        "As cell, but searches for the labels too, in case they are misread.",
        {**_CELL, "labels": "joint", "warmup": 50, "restarts": 2},
    ),
    "free_order": Preset(
        "As cell, for clients that shuffle: with images of their own in every epoch.",
        {**_CELL, **_TUNED, "restarts": 0, "epochs": "apart"},
    ),
    "group": Preset(
        "As cell, from four starts at once that are drawn to what all found.",
        {**_CELL, **_TUNED, "restarts": 0, "group": 4, "consensus": 0.1},
    ),
    "joint": Preset(
        "As cell, on all payloads of a client that repeats its images.",
        {**_CELL, **_TUNED, "grouping": "joint"},
    ),
    "synthetic_joint": Preset(
        "As joint, from the prediction of synthetic.",
        {**_CELL, "start": "synthetic", "iterations": 100, "grouping": "joint"},
    ),
}

SUITE = (
    "rgap",
    "analytic",
    "spear",
    "cocktail_party_cell",
    "active_imprint",
    "active_traps",
    "active_loki",
    "active_thresholds",
    "active_ares",
    "active_fishing",
    "idlg",
    "scaled",
    "cell",
    "free_labels",
    "free_order",
    "averaging",
    "joint",
    "synthetic_joint",
    "synthetic_cell",
    "learned_cell",
)
"""What ``suite`` is made of.

`inverting_gradients` is left out: it is slow and rarely the strongest. `group` takes four
searches and found no more than they do without it.
"""

_SUITE = (
    "Runs several attacks and keeps, for each victim, what predicts best what they did not see."
)

ATTACK_NAMES: tuple[str, ...] = (*PRESETS, "suite")

_OPTIMIZERS: Mapping[str, type[LBFGS] | type[SignedAdam]] = {
    "lbfgs": LBFGS,
    "signed_adam": SignedAdam,
}


@dataclass(frozen=True)
class _Choice:
    """The parameter that chooses the optimizer, which brings parameters of its own."""

    optimizer: Literal["lbfgs", "signed_adam"] = "lbfgs"


def build_attack(spec: str) -> Attack:
    """Build an attack by its name, optionally edited, e.g. ``cell:restarts=4,tv=1e-4``.

    Parameters
    ----------
    spec : str
        A preset, ``suite``, or an attack that another module registered; with parameters.

    Raises
    ------
    ValueError
        If a name or value is unknown; one line with what is allowed and the nearest name.

    Examples
    --------
    >>> from attacker import build_attack
    >>> build_attack("cell:restarts=4,tv=1e-4").restarts
    4
    """
    parsed = Spec.parse(spec)
    known = _known()
    if parsed.name not in known:
        raise ValueError(f"no attack {parsed.name!r}; {one_of(parsed.name, known)}")
    if parsed.name not in ATTACK_NAMES:
        return plugin_attack(spec.strip())
    if parsed.name == "suite":
        parse_parameters((), parsed.parameters, parsed.inner)  # it takes none
        return suite()
    return _build(parsed)


def _known() -> tuple[str, ...]:
    """Return the name of every attack, those of this project first."""
    others = names("attack")
    for name in others:
        if name in ATTACK_NAMES:
            module = module_of("attack", name)
            raise ValueError(f"the attack {name!r} of {module!r} has the name of a preset")
    return (*ATTACK_NAMES, *others)


def suite(*specs: str, name: str = "suite") -> Suite:
    """Build a suite of attacks, of which the strongest counts for each victim.

    Parameters
    ----------
    *specs : str
        Its members, as of `build_attack`; a suite adds its own. Those of `SUITE` if there are none.
    name : str
        Name of the suite in what it reconstructs.

    Raises
    ------
    ValueError
        As of `build_attack`.

    Examples
    --------
    >>> from attacker import suite
    >>> [member.name for member in suite("cell", "dlg:restarts=5").members]
    ['cell', 'dlg']
    """
    built = [build_attack(spec) for spec in specs or SUITE]
    members = [one.members if isinstance(one, Suite) else (one,) for one in built]
    return Suite(name, tuple(chain.from_iterable(members)))


def _build(spec: Spec) -> Attack:
    preset = PRESETS[spec.name]
    given = split_parameters(spec.parameters)
    if preset.kind is Matching and "optimizer" in given:
        preset = preset._replace(values={**preset.values, "optimizer": given["optimizer"]})
    edits = parse_parameters(_parts(preset), spec.parameters, spec.inner)
    if {"tv", "patches"} & edits.keys() and preset.kind is Matching:
        edits = {"prior": "fixed"} | edits
    return _assemble(spec.name, preset, _values(preset) | edits)


def catalogue() -> list[dict[str, Any]]:
    """Return the facts of every attack: those of `preset_entries`, then other people's."""
    return [*preset_entries(), *plugin_entries()]


def preset_entries() -> list[dict[str, Any]]:
    """Return of every preset ``name``, ``summary``, ``values``; of the suite also ``members``."""
    single = [
        {"name": name, "summary": preset.summary, "values": _values(preset)}
        for name, preset in PRESETS.items()
    ]
    return [*single, {"name": "suite", "summary": _SUITE, "values": {}, "members": list(SUITE)}]


def _values(preset: Preset) -> dict[str, Any]:
    """Return every value a preset uses: its own over the defaults."""
    defaults = default_parameters(_parts(preset))
    return defaults | {name: value for name, value in preset.values.items() if name in defaults}


def _parts(preset: Preset) -> tuple[type, ...]:
    """Return the classes whose fields are the parameters of a preset."""
    if preset.kind is not Matching:
        return (preset.kind,)
    optimizer = _OPTIMIZERS.get(preset.values.get("optimizer", _Choice.optimizer), LBFGS)
    return AttackLoss, Matching, _Choice, optimizer


def _assemble(name: str, preset: Preset, values: Mapping[str, Any]) -> Attack:
    def of(part: type) -> dict[str, Any]:
        return {key: values[key] for key in default_parameters(part)}

    if preset.kind is not Matching:
        return preset.kind(name, **values)
    optimizer = _OPTIMIZERS[values["optimizer"]]
    return Matching(
        name,
        loss=AttackLoss(**of(AttackLoss)),
        optimizer=optimizer(**of(optimizer)),
        **of(Matching),
    )
