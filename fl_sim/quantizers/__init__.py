"""Quantizers by spec string, e.g. ``parse_quantizer("uniform:bits=4")``."""

from fl_sim.quantizers.base import Quantizer
from fl_sim.quantizers.floats import Identity
from fl_sim.quantizers.parameters import parse_parameters, suggest
from fl_sim.quantizers.sign import ScaledSign, Sign
from fl_sim.quantizers.topk import TopK
from fl_sim.quantizers.uniform import Stochastic, Uniform

__all__ = ["QUANTIZERS", "Quantizer", "parse_quantizer"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    kind.name: kind for kind in (Identity, Uniform, Stochastic, Sign, ScaledSign, TopK)
}


def parse_quantizer(spec: str) -> Quantizer:
    """Return the quantizer a spec string names.

    The grammar is ``name``, ``name:parameter=value,...``, ``topk:keep=r+spec`` (prune, then
    quantize what is kept) or ``error_feedback(spec)``.

    Raises
    ------
    ValueError
        In one line: the spec, what is wrong, what is allowed and the nearest valid name.
    """
    try:
        return _parse(spec.strip())
    except ValueError as error:
        raise ValueError(f"Quantizer {spec!r}: {error}") from error


def _parse(spec: str) -> Quantizer:
    head, plus, rest = spec.partition("+")
    name, _, parameters = head.partition(":")
    kind = QUANTIZERS.get(name)
    if kind is None:
        raise ValueError(f"no quantizer {name!r}; {suggest(name, list(QUANTIZERS))}")
    values = parse_parameters(kind, parameters)
    if not plus:
        return kind(**values)
    if kind is not TopK:
        raise ValueError(f"only topk may come before '+', not {name!r}.")
    return TopK(**values, then=_parse(rest))
