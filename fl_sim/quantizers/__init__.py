"""Quantizers by spec string, e.g. ``parse_quantizer("uniform:bits=4")``."""

from dataclasses import replace
from functools import lru_cache

from fl_sim.coding.payload import MAX_SPEC
from fl_sim.quantizers.absmax import Absmax, Blockwise
from fl_sim.quantizers.base import Quantizer
from fl_sim.quantizers.composed.clip import Clip
from fl_sim.quantizers.composed.error_feedback import ErrorFeedback
from fl_sim.quantizers.composed.mixed import Mixed
from fl_sim.quantizers.composed.summed import Sum
from fl_sim.quantizers.composed.topk import TopK
from fl_sim.quantizers.fixed_point import FixedPoint
from fl_sim.quantizers.floats import Bf16, Fp8, Fp16, Identity
from fl_sim.quantizers.kmeans import KMeans
from fl_sim.quantizers.logarithmic import Log, Natural
from fl_sim.quantizers.noise import DpGaussian, Gaussian, Laplace
from fl_sim.quantizers.private.modular import DiscreteGaussian, Skellam
from fl_sim.quantizers.private.noisy_sign import NoisySign
from fl_sim.quantizers.private.poisson_binomial import PoissonBinomial
from fl_sim.quantizers.private.rqm import RQM
from fl_sim.quantizers.qsgd import QSGD, TernGrad
from fl_sim.quantizers.rotation import Drive, Eden
from fl_sim.quantizers.sign import ScaledSign, Sign
from fl_sim.quantizers.uniform import Stochastic, Uniform
from fl_sim.registry import find, register

__all__ = ["Quantizer", "parse_quantizer"]

for _kind in (
    Identity,
    Fp16,
    Bf16,
    Fp8,
    Uniform,
    Absmax,
    Stochastic,
    QSGD,
    TernGrad,
    Natural,
    Sign,
    ScaledSign,
    Log,
    KMeans,
    FixedPoint,
    Blockwise,
    TopK,
    Drive,
    Eden,
    Gaussian,
    Laplace,
    DpGaussian,
    NoisySign,
    RQM,
    PoissonBinomial,
    Skellam,
    DiscreteGaussian,
    Clip,
    Mixed,
    ErrorFeedback,
):
    register("quantizer", _kind.name)(_kind)
_FEEDBACK = f"{ErrorFeedback.name}("
_SUM = f"{Sum.name}:"


@lru_cache(maxsize=256)
def parse_quantizer(spec: str) -> Quantizer:
    """Return the quantizer a spec string names.

    The grammar is ``name``, ``name:parameter=value,...``, steps joined by ``+`` in their order,
    the last one the quantizer (``topk:keep=r+spec`` prunes, ``clip:norm=c+spec`` clips, then
    ``spec`` quantizes what is left), or ``error_feedback(spec)``. Of sums that a server saw it is
    ``sum:clients=n,step=s(spec)``.

    Raises
    ------
    ValueError
        In one line: the spec, what is wrong, what is allowed and the nearest valid name.

    Examples
    --------
    >>> from fl_sim import parse_quantizer
    >>> parse_quantizer("topk:keep=0.1+sign").spec
    'topk:keep=0.1+sign'
    """
    text = spec.strip()
    try:
        if len(text) > MAX_SPEC or not text.isascii():
            raise ValueError(f"give at most {MAX_SPEC} ASCII characters.")
        if text.startswith(_SUM) and text.endswith(")"):
            parameters, _, inner = text.removeprefix(_SUM).removesuffix(")").partition("(")
            return Sum.parse(parameters, _parse_alone(inner))
        return _parse_alone(text)
    except ValueError as error:
        raise ValueError(f"Quantizer {spec!r}: {error}") from error


def _parse_alone(text: str) -> Quantizer:
    if text.startswith(_FEEDBACK) and text.endswith(")"):
        return ErrorFeedback(_parse(text.removeprefix(_FEEDBACK).removesuffix(")")))
    return _parse(text)


def _parse(spec: str) -> Quantizer:
    head, plus, rest = spec.partition("+")
    name, _, parameters = head.partition(":")
    kind = ErrorFeedback if name.startswith(_FEEDBACK) else find("quantizer", name)
    if not (isinstance(kind, type) and issubclass(kind, Quantizer)):
        raise ValueError(f"{name!r} is not a subclass of Quantizer.")
    quantizer = kind.from_parameters(parameters)
    if not plus:
        return quantizer
    if not isinstance(quantizer, TopK | Clip):
        raise ValueError(f"only clip and topk may come before '+', not {name!r}.")
    return replace(quantizer, then=_parse(rest))
