"""Families: quantizers that differ in one number only, and so are points of one line."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from fl_sim.registry import find
from fl_sim.specs import default_parameters, split_parameters

_JOINTS = re.compile(r"([+()])")


class Membership(NamedTuple):
    """Where a quantizer stands in its family.

    Attributes
    ----------
    family : str
        The spec without the value that differs: ``topk:keep=0.1+uniform:bits``.
    value : float
        That value.
    """

    family: str
    value: float


def families_of(specs: Sequence[str]) -> dict[str, Membership]:
    """Group quantizers that differ in one numeric parameter, wherever it stands in the spec.

    A quantizer that could join several families joins the largest; of equal ones that of the last
    parameter. A parameter that is not given has its default.

    Parameters
    ----------
    specs : sequence of str
        Canonical specs.

    Returns
    -------
    dict[str, Membership]
        By spec, in the given order; quantizers without a family are left out.

    Examples
    --------
    >>> from results.scores.families import families_of
    >>> families_of(["none", "uniform:bits=2", "uniform:bits=8"])["uniform:bits=8"]
    Membership(family='uniform:bits', value=8.0)
    """
    specs = list(dict.fromkeys(specs))
    offers = {spec: list(_memberships(spec)) for spec in specs}
    found: dict[str, Membership] = {}
    while True:
        left = [(spec, offer) for spec in specs if spec not in found for offer in offers[spec]]
        sizes = Counter(offer.family for _, offer in left)
        if max(sizes.values(), default=0) < 2:
            return {spec: found[spec] for spec in specs if spec in found}
        family = max(reversed(sizes), key=sizes.__getitem__)
        found |= {spec: offer for spec, offer in left if offer.family == family}


def with_families(results: pd.DataFrame) -> pd.DataFrame:
    """Return results with the columns ``family`` (the quantizer itself without one) and ``value``.

    Rows of a family stand together in the order of their values, where its first row stood.
    """
    specs = results["quantizer"].astype("str").tolist()
    found = families_of(specs)
    named = results.assign(
        family=[found[spec].family if spec in found else spec for spec in specs],
        value=[found[spec].value if spec in found else np.nan for spec in specs],
    )
    order = {family: place for place, family in enumerate(dict.fromkeys(named["family"]))}
    return named.sort_values(
        ["family", "value"], key=lambda c: c.map(order) if c.name == "family" else c, kind="stable"
    ).reset_index(drop=True)


def _memberships(spec: str) -> Iterator[Membership]:
    """Yield every family that a spec may belong to, one for each of its numbers."""
    pieces = _JOINTS.split(spec)
    for place, piece in enumerate(pieces):
        name, _, text = piece.partition(":")
        given = split_parameters(text)
        for parameter, value in {**_numeric_defaults(name), **given}.items():
            number = _number(value)
            if number is not None:
                others = [f"{k}={v}" for k, v in given.items() if k != parameter]
                label = f"{name}:{','.join([*others, parameter])}"
                yield Membership("".join([*pieces[:place], label, *pieces[place + 1 :]]), number)


@lru_cache
def _numeric_defaults(name: str) -> dict[str, str]:
    try:
        defaults = default_parameters(find("quantizer", name))
    except ValueError:  # of another module that is not loaded, or no quantizer at all
        return {}
    return {name: str(value) for name, value in defaults.items() if type(value) in (int, float)}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
