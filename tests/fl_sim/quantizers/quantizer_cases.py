"""Specs, layouts and hypothesis strategies shared by the tests of quantizers."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.testing.quantizers import layout_of, seeded
from fl_sim.updates.local_update import Update

__all__ = ["SPECS", "is_randomized", "layout_of", "seeded", "update_of", "updates"]

SPECS = (
    *EXAMPLES,
    "fp8:format=e5m2",
    "uniform:bits=1",
    "uniform:levels=5",
    "uniform:bits=7,scope=global",
    "uniform:bits=12",
    "absmax:bits=2",
    "absmax:bits=8,scope=global",
    "stochastic:bits=1",
    "stochastic:levels=240",
    "qsgd:levels=1,norm=inf",
    "scaled_sign:scope=global",
    "log:base=1.5,bits=4",
    "kmeans:clusters=3,scope=global",
    "fixed_point:bits=4,fraction=-2",
    "blockwise:bits=4,block=3",
    "topk:keep=0.4,scope=global",
    "topk:keep=0.1+stochastic:bits=4",
    "topk:keep=0.3+scaled_sign",
    "topk:keep=0.3+eden:bits=2",
    "drive:scale=biased",
    "eden:bits=1",
    "mixed:of=stochastic,last=8,t0*=3,rest=1",
    "error_feedback(topk:keep=0.2+absmax:bits=3)",
    "clip:norm=0.7+gaussian:sigma=0.1",
    "clip:norm=2+eden:bits=3",
    "clip:norm=1+topk:keep=0.3+stochastic:bits=4",
    "topk:keep=0.4+clip:norm=1+drive",
    "topk:keep=0.4+rqm:clip=1,margin=0.5,levels=5,keep=0.3",
    "error_feedback(clip:norm=3+sign)",
    "skellam:clip=1,noise=0.2,bits=8",
    "poisson_binomial:clip=0.1,trials=300,theta=0.1",
)
RANDOMIZED = ("stochastic", "qsgd", "terngrad", "natural", "gaussian", "laplace", "dp_", "drive",
              "eden", "noisy_", "rqm", "poisson", "skellam")  # fmt: skip


def is_randomized(spec: str) -> bool:
    return any(name in spec for name in RANDOMIZED)


def update_of(*tensors: list[float] | Tensor) -> Update:
    pieces = [torch.as_tensor(t, dtype=torch.float32) for t in tensors]
    return Update(torch.cat(pieces), layout_of(*(p.numel() for p in pieces)))


@st.composite
def updates(draw: st.DrawFn, magnitude: float = 1e4) -> Update:
    """Updates of one to four small tensors: awkward values, or many orders of magnitude."""
    sizes = draw(st.lists(st.integers(1, 19), min_size=1, max_size=4))
    count = sum(sizes)
    if draw(st.booleans()):
        element = st.floats(-magnitude, magnitude, width=32, allow_subnormal=False)
        values = np.array(draw(st.lists(element, min_size=count, max_size=count)), np.float32)
        values[np.abs(values) < 1e-20] = 0  # steps of the lattice must stay normal numbers
    else:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        spread = draw(st.sampled_from([0.0, 1.0, 4.0]))
        values = rng.standard_normal(count) * np.exp(spread * rng.standard_normal(count))
        values = values.clip(-magnitude, magnitude)
    return Update(torch.tensor(values, dtype=torch.float32), layout_of(*sizes))
