"""What several guesses at each image find: one for each epoch of clients that shuffle, and groups.

CIFAR images and `lenet` at its first weights. Clients of *2_epochs* and *5_epochs* train over two
batches of four, in an order that nobody else knows; those of *batch_8* send one gradient. All
attacks have the same prior. A consensus of 1e-9 draws nothing together, but takes as long.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from attacker.presets import build_attack
from benchmarks.attack_trials import (
    GALLERY,
    Victims,
    argument_parser,
    medians,
    score,
    victims_of,
)
from benchmarks.provenance import print_csv
from fl_sim.models import ModelSpec, build_model
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork

MODEL = "lenet"
QUANTIZERS = ("none", "uniform:bits=4", "sign")
_PRIOR = "tv=0.001,restarts=0"


@dataclass(frozen=True)
class Setting:
    """What clients do, and the attacks that are compared."""

    name: str
    work: LocalWork
    attacks: tuple[str, ...]


def _epochs(count: int) -> Setting:
    work = LocalWork("delta", 4, 0.05, 2 * count, 2, shuffled=True)
    attacks = f"cell:{_PRIOR}", f"free_order:{_PRIOR}"
    return Setting(f"{count}_epochs", work, attacks)


SETTINGS = (
    _epochs(2),
    _epochs(5),
    Setting(
        "batch_8",
        LocalWork(batch_size=8),
        ("cell:tv=0.001,restarts=3", f"group:{_PRIOR},consensus=1e-9", f"group:{_PRIOR}"),
    ),
)


def main() -> None:
    """Print docs/results/attacks/consensus.csv."""
    parser = argument_parser(__doc__)
    parser.add_argument("--settings", nargs="*", default=[one.name for one in SETTINGS])
    parser.add_argument("--quantizers", nargs="*", default=QUANTIZERS)
    print_csv(every_row(parser.parse_args()))


def every_row(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the lines of the table that the command line asks for."""
    asked = [one for one in SETTINGS if one.name in arguments.settings]
    for setting, quantizer in product(asked, arguments.quantizers):
        yield from rows(setting, quantizer, victims_of(arguments))


def rows(setting: Setting, quantizer: str, victims: Victims) -> Iterator[dict[str, object]]:
    """Yield a line for each attack on the same observations."""
    truth, public = victims.batches(setting.work), victims.public
    spec = ModelSpec(MODEL, tuple(truth.images.shape[2:]), 10)
    module = build_model(spec, victims.seed)
    given = {name: one.detach() for name, one in module.named_parameters()}
    sent = (part.flatten(0, 1) for part in truth)
    weights = Layout.of(module).flatten(given)
    seen = observe(*sent, quantizer, setting.work, spec=spec, weights=weights)
    for attack in setting.attacks:
        began = time.process_time()
        made = build_attack(attack).reconstruct(seen, seed=victims.seed, public=public)
        spent = time.process_time() - began
        scores = score(made, truth, public.images[-GALLERY:])
        yield {
            **{"setting": setting.name, "quantizer": quantizer, "attack": attack},
            **medians(scores),
            "mean MSE": f"{scores['mse'].mean():.2g}",
            **{"clients": len(made), "CPU s": f"{spent:.0f}"},
        }


if __name__ == "__main__":
    main()
