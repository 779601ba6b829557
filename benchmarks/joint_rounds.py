"""What several rounds of the same private images tell, while training moves the weights (CIFAR)."""

from collections.abc import Iterator

import torch

from attacker.presets import build_attack
from benchmarks.attack_trials import SPEC, argument_parser, attacked, victims_of
from benchmarks.provenance import print_csv
from fl_sim.models import build_model
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.study.settings import TrainingSettings
from fl_sim.updates.local_update import Layout, LocalWork, Update, flat_model, local_update, one_hot
from results.scores.gates import Truth
from server.strategies.averaging import server_optimizer

ATTACKS = ("cell", "joint", "synthetic_cell", "synthetic_joint")


def main() -> None:
    """Print docs/results/attacks/joint_rounds.csv."""
    parser = argument_parser(__doc__)
    parser.add_argument("--quantizers", nargs="*", default=["sign", "uniform:bits=2"])
    parser.add_argument("--observe", type=int, nargs="*", default=[1, 10, 20, 30])
    parser.add_argument("--attacks", nargs="*", default=ATTACKS)
    arguments = parser.parse_args()
    victims, work = victims_of(arguments), LocalWork(fixed_batch=True)
    truth, public = victims.batches(work), victims.public

    def every_row() -> Iterator[dict[str, object]]:
        for quantizer in arguments.quantizers:
            seen = list(observe(quantizer, arguments.observe, truth, work, arguments.seed))
            for name in arguments.attacks:
                joint = getattr(build_attack(name), "grouping", "single") == "joint"
                rounds = arguments.observe if joint else arguments.observe[:1]
                chosen = [o for o in seen if o.round in rounds]
                head = {"quantizer": quantizer, "rounds": ", ".join(map(str, rounds))}
                yield head | attacked(name, chosen, truth, public, arguments.seed)

    print_csv(every_row())


def observe(
    quantizer: str, rounds: list[int], truth: Truth, work: LocalWork, seed: int
) -> Iterator[Observation]:
    """Yield what a server sees at ``rounds`` of clients that train on one image each."""
    module = build_model(SPEC, seed)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    optimizer = server_optimizer(weights, TrainingSettings())
    model, parsed = flat_model(SPEC), parse_quantizer(quantizer)
    targets = one_hot(truth.labels, SPEC.classes)
    for round_ in range(1, max(rounds) + 1):
        sent, total = weights.clone(), torch.zeros_like(weights)
        for partition, images in enumerate(truth.images):
            vector = local_update(model, work, sent, images, targets[partition], eager=True)
            rng = torch_rng(seed, Purpose.QUANTIZER, round_, partition)
            payload = parsed.encode(Update(vector, model.layout), rng)
            total += parsed.decode(payload).vector
            if round_ in rounds:
                yield Observation("table", round_, partition, SPEC, work, sent, payload)
        weights.grad = total / len(targets)
        optimizer.step()


if __name__ == "__main__":
    main()
