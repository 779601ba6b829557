"""What planting costs a server: accuracy, bytes, and rounds until it has read all of a client."""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from attacker.attack import Attack
from attacker.presets import build_attack
from benchmarks.provenance import print_csv
from benchmarks.servers.imprint import initial_weights
from fl_sim.data.datasets import Images, Splits, load_splits
from fl_sim.models import ModelSpec
from fl_sim.plans import ServerPlan, parse_plan
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.study.settings import DataSettings
from fl_sim.testing import observe
from fl_sim.updates.local_update import LocalWork, flat_model, one_hot
from results.scores.scoring import score_batch
from server.evaluation import evaluate

CASES = {
    ("mlp:activation=relu,width=256", "traps:share=0.1"): (0, 10, 5, 2, 1),
    ("cnn", "thresholds"): (0, 10, 5, 2, 1),
    ("lenet", "imprint"): (0, 1),
    ("lenet", "loki:clients=8"): (0, 1),
}
"""Models and plans, and one round in how many is planted. A layer of the server's own always is."""

ROUNDS, ROUND_BATCH, RATE = 200, 64, 0.1
HELD, BATCH, MOST_ROUNDS = 64, 8, 150


def main() -> None:
    """Print docs/results/attacks/planting_cost.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quantizer", default="uniform:bits=8")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print_csv(every_row(range(arguments.seeds), arguments.quantizer))


def every_row(seeds: range, quantizer: str) -> Iterator[dict[str, object]]:
    """Yield a row for each plan and each share of planted rounds."""
    runs = [load_splits(DataSettings(dataset="digits"), seed) for seed in seeds]
    for (name, text), frequencies in CASES.items():
        read: list[tuple[float, float]] = []
        for every in frequencies:
            plan = parse_plan(text if every else "curious")
            spec = ModelSpec(plan.model(name), runs[0].shape, len(runs[0].classes))
            reached = [accuracy(plan, spec, one, every, seed) for seed, one in enumerate(runs)]
            if every and not read:
                facts = (plan, spec)
                read = [rounds_to_read(*facts, one, quantizer, s) for s, one in enumerate(runs)]
            yield {
                "plan": text,
                "one round in": every or "none planted",
                "model": name,
                "bytes": size_of_update(spec, quantizer),
                "test accuracy %": f"{100 * float(np.mean(reached)):.1f}",
                "rounds to read 90 %": rounds(every, [most for most, _ in read]),
                "rounds to read all": rounds(every, [every_one for _, every_one in read]),
            }


def rounds(every: int, planted: list[float]) -> str:
    """Return the median number of rounds, given those that are planted; none if none are."""
    if not every:
        return ""
    middle = float(np.median(planted)) * every
    return f"more than {MOST_ROUNDS * every}" if middle == np.inf else f"{middle:.0f}"


def accuracy(plan: ServerPlan, spec: ModelSpec, splits: Splits, every: int, seed: int) -> float:
    """Return the test accuracy of a training of which one round in so many is planted.

    What clients answer in a planted round trains nothing; if every round is planted, it trains
    what the plan leaves alone (`server.Malicious`).
    """
    model, weights = flat_model(spec), initial_weights(spec, seed)
    public, rng = splits.public.pixels(), numpy_rng(seed, Purpose.BATCH)
    for number in range(ROUNDS):
        batch = draw(splits.train, ROUND_BATCH, rng)
        if every > 1 and number % every == 0:
            continue
        sent = plan.weights_for(0, spec, weights, public) if every == 1 else weights
        targets = one_hot(batch.labels, spec.classes)
        weights = sent - RATE * model.eager_gradient(sent, batch.pixels(), targets)
    if every == 1:
        weights = plan.weights_for(0, spec, weights, public)
    return evaluate(model, LocalWork(), weights, splits.test)[0]


def rounds_to_read(
    plan: ServerPlan, spec: ModelSpec, splits: Splits, quantizer: str, seed: int
) -> tuple[float, float]:
    """Return after how many planted rounds 90 % and all images of a client have been read.

    The client holds `HELD` images and uses `BATCH` of them, drawn at random, in each round. An
    image is read if its error falls below 0.01.
    """
    rng = numpy_rng(seed, Purpose.CLIENT_SAMPLING)
    held = draw(splits.train, HELD, rng)
    weights = plan.weights_for(0, spec, initial_weights(spec, seed), splits.public.pixels())
    attack, read = build_attack(plan.reader), torch.zeros(HELD, dtype=torch.bool)
    most = np.inf
    for number in range(1, MOST_ROUNDS + 1):
        chosen = torch.from_numpy(rng.choice(HELD, size=BATCH, replace=False))
        batch = held.take(chosen.numpy())
        read[chosen] |= found(attack, plan, spec, weights, batch, quantizer)
        if most == np.inf and read.float().mean() >= 0.9:
            most = number
        if read.all():
            return most, number
    return most, np.inf


def found(
    attack: Attack,
    plan: ServerPlan,
    spec: ModelSpec,
    weights: Tensor,
    batch: Images,
    quantizer: str,
) -> Tensor:
    """Return which images of a batch are read, ``(BATCH,)`` bool."""
    images, labels, work = batch.pixels(), batch.labels, LocalWork(batch_size=BATCH)
    facts = {"spec": spec, "weights": weights, "server": plan.spec}
    (made,) = attack.reconstruct(observe(images, labels, quantizer, work, **facts), seed=0)
    scores = score_batch(made.images, made.labels, images, labels)
    return torch.from_numpy((scores.sort_values("image").mse < 1e-2).to_numpy().copy())


def draw(images: Images, count: int, rng: np.random.Generator) -> Images:
    """Return images that are drawn without replacement."""
    return images.take(rng.choice(len(images), size=count, replace=False))


def size_of_update(spec: ModelSpec, quantizer: str) -> int:
    """Return the bytes that a client sends."""
    images, labels = torch.zeros(1, *spec.shape), torch.zeros(1, dtype=torch.long)
    (seen,) = observe(images, labels, quantizer, spec=spec)
    return seen.payload.nbytes


if __name__ == "__main__":
    main()
