"""What closed forms tell apart in batches of CIFAR images, through a first layer and a quantizer.

Rows of `spear` are of an MLP with ReLU, rows of `cocktail_party` of one with sigmoid. *exact %* is
the share of batches all of whose images have an MSE below 1e-6.
"""

import time
from collections.abc import Iterator

from attacker.presets import build_attack
from benchmarks.attack_trials import GALLERY, argument_parser, medians, percent, score, victims_of
from benchmarks.provenance import print_csv
from fl_sim.models import ModelSpec, build_model
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork

EXACT = 1e-6
MODELS = {"spear": "mlp:activation=relu,width=256", "cocktail_party": "mlp:width=256"}
"""The model that each family of attacks is measured on."""


def main() -> None:
    """Print docs/results/attacks/batches.csv."""
    parser = argument_parser(__doc__)
    parser.add_argument("--batches", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--attacks", nargs="*", default=["spear", "cocktail_party"])
    parser.add_argument(
        "--quantizers", nargs="*", default=["none", *(f"uniform:bits={n}" for n in (16, 8, 4))]
    )
    arguments = parser.parse_args()
    victims = victims_of(arguments)

    def every_row() -> Iterator[dict[str, object]]:
        for name in arguments.attacks:
            family = name.removesuffix("_cell")
            for size in arguments.batches:
                truth, public = victims.batches(LocalWork(batch_size=size)), victims.public
                spec = ModelSpec(MODELS[family], tuple(truth.images.shape[2:]), 10)
                module = build_model(spec, arguments.seed)
                weights = Layout.of(module).flatten(
                    {key: one.detach() for key, one in module.named_parameters()}
                )
                for quantizer in arguments.quantizers:
                    sent = (part.flatten(0, 1) for part in truth)
                    work = LocalWork(batch_size=size)
                    seen = observe(*sent, quantizer, work, spec=spec, weights=weights)
                    attack = build_attack(name)
                    if not attack.applies(seen):
                        continue
                    began = time.process_time()
                    made = attack.reconstruct(seen, seed=arguments.seed)
                    spent = time.process_time() - began
                    scores = score(made, truth, public.images[-GALLERY:])
                    worst = scores.groupby("batch")["mse"].max()
                    yield {
                        **{"attack": name, "model": spec.name, "batch": size},
                        **{"quantizer": quantizer, "batches": len(seen)},
                        "exact %": percent(worst < EXACT),
                        **medians(scores),
                        "CPU s a batch": f"{spent / len(seen):.2g}",
                    }

    print_csv(every_row())


if __name__ == "__main__":
    main()
