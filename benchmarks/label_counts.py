"""How many labels of a batch are counted at weights that training made (CIFAR).

The clients hold test images; the attacker has public images with their labels, or none.
"""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from benchmarks.attack_trials import argument_parser, victims_of
from benchmarks.provenance import print_csv
from fl_sim.data.datasets import Images
from fl_sim.models import ModelSpec, build_model
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork
from results.scores.scoring import labels_recovered


def main() -> None:
    """Print docs/results/attacks/label_counts.csv."""
    parser = argument_parser(__doc__)
    parser.add_argument("--models", nargs="*", default=["lenet_dlg", "lenet"])
    parser.add_argument("--quantizers", nargs="*", default=["sign"])
    parser.add_argument("--steps", type=int, nargs="*", default=[0, 100, 600])
    parser.add_argument("--batch-size", type=int, default=8)
    arguments = parser.parse_args()
    victims, work = victims_of(arguments), LocalWork(batch_size=arguments.batch_size)
    truth, public = victims.batches(work), victims.public

    def every_row() -> Iterator[dict[str, object]]:
        for name in arguments.models:
            spec = ModelSpec(name, tuple(truth.images.shape[2:]), 10)
            for steps in arguments.steps:
                weights = trained(spec, victims.training_images, steps, arguments.seed)
                for quantizer in arguments.quantizers:
                    images, labels = truth.images.flatten(0, 1), truth.labels.flatten()
                    seen = observe(images, labels, quantizer, work, spec=spec, weights=weights)
                    problems = Problems.of([[one] for one in seen])
                    yield {
                        "model": name,
                        "steps": steps,
                        "quantizer": quantizer,
                        "batch": work.images,
                        "batches": len(seen),
                        "labels_without_data": share(recover_labels(problems), truth.labels),
                        "labels_with_public": share(recover_labels(problems, public), truth.labels),
                    }

    print_csv(every_row())


def trained(spec: ModelSpec, images: Images, steps: int, seed: int) -> torch.Tensor:
    """Return weights after some steps of Adam (0.003) on batches of 64 images."""
    module, order = build_model(spec, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(module.parameters(), 0.003)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=order).numpy()
        batch = images.take(rows)
        optimizer.zero_grad()
        cross_entropy(module(batch.pixels()), batch.labels).backward()
        optimizer.step()
    return Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})


def share(found: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of labels that are counted right, over all batches."""
    pairs = zip(found.tolist(), labels.tolist(), strict=True)
    return round(sum(labels_recovered(*pair) for pair in pairs) / len(labels), 4)


if __name__ == "__main__":
    main()
