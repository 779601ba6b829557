"""Bytes of a fixed update by every quantizer, kept so that later code must read and write them.

    python -m tests.fl_sim.quantizers.make_golden

adds the quantizers that are not there yet, and never changes what is there. If a format has to
change, raise the quantizer's ``version`` (or the file's ``FORMAT``), delete its entry (or file)
by hand and say so in docs/payload.md.
"""

import json
from pathlib import Path

import torch

from fl_sim.models import ModelSpec
from fl_sim.observed.observations import Observation, round_path, save_observations
from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.updates.local_update import Layout, LocalWork, Segment, Update, layout_of_model

GOLDEN = Path(__file__).parent / "golden"
PAYLOADS = GOLDEN / "payloads.json"
OBSERVATION = round_path(GOLDEN.parent, GOLDEN.name, 1)
LAYOUT = Layout(
    (
        Segment("conv.weight", (2, 3, 3)),
        Segment("conv.bias", (2,)),
        Segment("fc.weight", (4, 5)),
        Segment("fc.bias", (4,)),
    )
)


def fixed_update(layout: Layout = LAYOUT) -> Update:
    """Return an update of both signs, many magnitudes and a zero, exact on every machine."""
    order = torch.arange(layout.size) * 37 % layout.size - layout.size // 2
    return Update(order.double().pow(3).mul(2.0**-14).float(), layout)


def generator() -> torch.Generator:
    """Return the generator that randomized quantizers encode with."""
    return torch.Generator().manual_seed(7)


def read_golden() -> dict[str, dict[str, str]]:
    """Return ``payload`` and decoded ``values``, as hexadecimal bytes, of each spec."""
    stored: dict[str, dict[str, str]] = json.loads(PAYLOADS.read_text())
    return stored


def make(spec: str) -> dict[str, str]:
    """Return the golden entry of a spec by today's code."""
    quantizer = parse_quantizer(spec)
    payload = quantizer.encode(fixed_update(), generator())
    values = quantizer.decode(payload).vector
    return {"payload": payload.to_bytes().hex(), "values": values.numpy().tobytes().hex()}


def observed() -> Observation:
    """Return the observation that is stored, of the smallest model there is."""
    model = ModelSpec("lenet", (1, 1, 1), 3)
    update = fixed_update(layout_of_model(model))
    payload = parse_quantizer("uniform:bits=4").encode(update, generator())
    return Observation(GOLDEN.name, 1, 5, model, LocalWork(batch_size=2), update.vector, payload)


if __name__ == "__main__":
    entries = read_golden() if PAYLOADS.exists() else {}
    entries |= {spec: make(spec) for spec in EXAMPLES if spec not in entries}
    PAYLOADS.parent.mkdir(exist_ok=True)
    PAYLOADS.write_text(json.dumps(entries, indent=1) + "\n")
    if not OBSERVATION.exists():
        save_observations(GOLDEN.parent, [observed()])
