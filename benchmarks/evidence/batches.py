"""What closed forms tell apart in batches of CIFAR images, through a first layer and a quantizer.

Rows of `spear` are of an MLP with ReLU, rows of `cocktail_party` of one with sigmoid. *exact %* is
the share of batches all of whose images have an MSE below 1e-6.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import product

from attacker.presets import build_attack
from benchmarks.attack_trials import (
    GALLERY,
    Victims,
    argument_parser,
    medians,
    percent,
    score,
    victims_of,
)
from benchmarks.provenance import print_csv
from fl_sim.models import ModelSpec, build_model
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork

EXACT = 1e-6
INPUTS: dict[str, dict[str, tuple[float, ...]]] = {
    "pixels": {},
    "normalised": {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)},
}
"""What models see: pixels in [0, 1], or these less the mean of CIFAR-10, by its deviation."""
RELU = "mlp:activation=relu,width="
SETTINGS = {
    "spear": ((f"{RELU}256", "pixels"), (f"{RELU}512", "pixels"), (f"{RELU}256", "normalised")),
    "cocktail_party": (("mlp:width=256", "pixels"),),
}
"""The models and inputs that each family of attacks is measured on."""


def main() -> None:
    """Print docs/results/attacks/batches.csv."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--attacks", nargs="*", default=["spear", "cocktail_party"])
    parser.add_argument(
        "--quantizers", nargs="*", default=["none", *(f"uniform:bits={n}" for n in (16, 8, 4))]
    )
    print_csv(every_row(parser.parse_args()))


def every_row(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the lines of the table that the command line asks for."""
    victims = victims_of(arguments)
    for name in arguments.attacks:
        settings = SETTINGS[name.removesuffix("_cell")]
        for setting, *asked in product(settings, arguments.batches, arguments.quantizers):
            yield from row(name, *setting, *asked, victims)


def row(
    name: str, model: str, inputs: str, size: int, quantizer: str, victims: Victims
) -> Iterator[dict[str, object]]:
    """Yield the line of an attack on batches through a quantizer, if the attack applies."""
    work = LocalWork(batch_size=size, **INPUTS[inputs])
    truth, public = victims.batches(work), victims.public
    spec = ModelSpec(model, tuple(truth.images.shape[2:]), 10)
    module = build_model(spec, victims.seed)
    given = {key: one.detach() for key, one in module.named_parameters()}
    weights = Layout.of(module).flatten(given)
    sent = (part.flatten(0, 1) for part in truth)
    seen = observe(*sent, quantizer, work, spec=spec, weights=weights)
    attack = build_attack(name)
    if not attack.applies(seen):
        return
    began = time.process_time()
    made = attack.reconstruct(seen, seed=victims.seed)
    spent = time.process_time() - began
    scores = score(made, truth, public.images[-GALLERY:])
    yield {
        **{"attack": name, "model": spec.name, "inputs": inputs, "batch": size},
        **{"quantizer": quantizer, "batches": len(seen)},
        "exact %": percent(scores.groupby("batch")["mse"].max() < EXACT),
        **medians(scores),
        "CPU s a batch": f"{spent / len(seen):.2g}",
    }


if __name__ == "__main__":
    main()
