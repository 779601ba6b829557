"""What a quantizer leaves of an update, found by quantizing a random one."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.updates.local_update import Layout, Segment, Update

_LAYOUT = Layout(tuple(Segment(f"layer{number}.weight", (64, 64)) for number in range(3)))
_NARROW = 0.4  # width of a cell that was kept, relative to one that was dropped


@dataclass(frozen=True)
class Trace:
    """What is left of a Gaussian update.

    Attributes
    ----------
    signs : bool
        Whether only signs are left.
    rotated : bool
        Whether payloads are in another domain than updates; the rest is then not known.
    random : bool
        Whether rounding is random.
    dropped : float
        Share of the elements that were pruned.
    zeros : float
        Share of the elements that were rounded to zero, or pruned.
    step : float
        Median step, relative to the rms of what is decoded.
    """

    signs: bool
    rotated: bool
    random: bool
    dropped: float
    zeros: float
    step: float


@lru_cache(maxsize=64)
def trace_of(quantizer: str) -> Trace:
    """Quantize a random update and return what is left of it.

    Parameters
    ----------
    quantizer : str
        Spec of a quantizer.

    Examples
    --------
    >>> from fl_sim.plans.trace import trace_of
    >>> trace_of("sign").signs, trace_of("uniform:bits=8").signs
    (True, False)
    """
    rng = torch_rng(0, Purpose.PLAN)
    update = Update(torch.randn(_LAYOUT.size, generator=rng), _LAYOUT)
    parsed = parse_quantizer(quantizer)
    payload, _ = parsed.transmit(update, None, rng)
    cell = parsed.cell(payload)
    zero, width = cell.center == 0, cell.upper - cell.lower
    one_sided = cell.lower.isinf() ^ cell.upper.isinf()
    certain = cell.noise == "none"
    rotated = cell.transform is not None
    dropped = zero & certain if cell.certain is None else cell.certain
    if certain and bool(zero.any()) and not bool(zero.all()):
        # A quantizer that prunes keeps what it does not drop far better.
        dropped = dropped & (width[~zero].median() < _NARROW * width[zero].median())
    return Trace(
        signs=certain and not rotated and bool(one_sided.float().mean() > 0.5),
        rotated=rotated,
        random=cell.noise == "triangular",
        dropped=float(dropped.float().mean()),
        zeros=float(zero.float().mean()),
        step=float(cell.step.median() / cell.center.square().mean().sqrt()),
    )
