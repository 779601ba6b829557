"""The catalogue of quantizers: what each sends, whether it is unbiased, and its error."""

from dataclasses import dataclass

from fl_sim.quantizers import parse_quantizer

EXAMPLES: tuple[str, ...] = (
    "none",
    "fp16",
    "bf16",
    "fp8:format=e4m3",
    "uniform:bits=4",
    "absmax:bits=4",
    "stochastic:bits=4",
    "qsgd:levels=4,norm=l2",
    "terngrad",
    "natural",
    "sign",
    "scaled_sign",
    "log:base=2",
    "kmeans:clusters=16",
    "fixed_point:bits=8,fraction=6",
    "blockwise:bits=8,block=256",
    "topk:keep=0.1",
    "drive",
    "eden:bits=4",
    "gaussian:sigma=0.01",
    "laplace:scale=0.01",
    "dp_gaussian:clip=1,noise=0.1",
    "noisy_sign:clip=1,noise=0.1",
    "rqm:clip=1,margin=1,levels=16,keep=0.42",
    "poisson_binomial:clip=1,trials=16,theta=0.25",
    "skellam:clip=1,noise=0.1",
    "discrete_gaussian:clip=1,noise=0.1",
    "clip:norm=1",
    "mixed:first=8,rest=2",
    "error_feedback(sign)",
)
"""One spec of every quantizer, in the order of the catalogue."""


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue.

    Attributes
    ----------
    name : str
        Name in a spec string.
    example : str
        A spec string that parses.
    summary : str
        One sentence.
    bits : str
        Bits of the body for ``d`` elements.
    unbiased : bool
        Whether the expected decoded value is the update.
    error : str
        The error, exact or bounded.
    source : str
        Where it was published.
    """

    name: str
    example: str
    summary: str
    bits: str
    unbiased: bool
    error: str
    source: str


def catalogue() -> list[Entry]:
    """Return the facts of every quantizer, in a fixed order."""
    return [_entry(example) for example in EXAMPLES]


def _entry(example: str) -> Entry:
    kind = type(parse_quantizer(example))
    facts = kind.facts
    summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    return Entry(kind.name, example, summary, facts.bits, facts.unbiased, facts.error, facts.source)
