"""What `clients.Inspect` finds of malicious servers, at which rate of false alarms.

``--out FILE`` trains honest models, plants in them, and appends the signs of both to a CSV file; it
goes on where it was interrupted. ``--table FILE`` and ``--limits FILE`` print what these say.
"""

import argparse
import csv
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.provenance import commit, print_csv
from clients.signs import (
    LIMITS,
    sign_of_loss,
    signs_of_batch,
    signs_of_change,
    signs_of_weights,
    suspicion,
)
from fl_sim.data.datasets import Images, load_splits
from fl_sim.models import ModelSpec, build_model
from fl_sim.plans import ServerPlan, parse_plan
from fl_sim.seeding import Purpose, numpy_rng, torch_rng
from fl_sim.study.settings import DataSettings
from fl_sim.testing import observe
from fl_sim.updates.local_update import Layout, LocalWork, flat_model, one_hot
from results.scores.scoring import score_batch

ROUNDS = (0, 5, 20, 60, 200)
RATES = (0.01, 0.03, 0.1)
READ_AT = 5
BATCH, ROUND_BATCH = 8, 64
CLIENT = 1  # that inspects, among those that a plan tells apart
RELU_MLP = "mlp:activation=relu,width=256"
CASES = (
    ("lenet", "curious"),
    ("convnet", "curious"),
    ("mlp", "curious"),
    (RELU_MLP, "traps:share=0.03"),
    (RELU_MLP, "traps:share=0.1"),
    ("lenet", "imprint"),
    ("cnn:hidden=96", "thresholds"),
    ("lenet", "loki:clients=2"),
    (RELU_MLP, "inconsistent(traps:share=0.1)"),
    ("lenet", "fishing:target=3"),
    ("lenet", "fishing:target=3,share=0.125,wanted=others"),
)
"""Models, and the plans that are carried out on them; ``curious``: honest models alone."""

WEIGHTS = ("copies", "alike", "concentrated", "empty", "constant", "even", "biased")
CHANGE = ("moved", "still")
HEAD = ("model", "plan", "variant", "seed", "rate", "round", "recovered", "commit")
VARIANTS = (
    *("published", "kept", "noise=0.03", "noise=0.1", "noise=0.3", "noise=1"),
    *("jitter=0.5", "part=0.5", "part=0.1"),
)
"""What an attacker who knows the signs does to what is planted; see `adapted`.

``published`` begins in this round, so that the round before was honest; ``kept`` began before."""


class Task(NamedTuple):
    """One training, and what is planted in it."""

    model: str
    plan: str
    seed: int
    rate: float


def main() -> None:
    """Make samples, or print docs/results/attacks/inspection.csv of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--limits", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no task later")
    parser.add_argument("--rounds", type=int, default=max(ROUNDS), help="train no longer")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data/cifar10"))
    arguments = parser.parse_args()
    if arguments.out:
        sample(arguments)
    if arguments.limits:
        print_csv(limits(pd.read_csv(arguments.limits)))
    if arguments.table:
        rows = pd.DataFrame(table(pd.read_csv(arguments.table)))
        rows.to_csv(sys.stdout, index=False, lineterminator="\n")


def sample(arguments: argparse.Namespace) -> None:
    """Append the samples of every task that the file does not have yet."""
    os.environ["OMP_NUM_THREADS"] = "1"
    tasks = [
        Task(model, plan, seed, rate)
        for seed in range(arguments.seeds)
        for rate in RATES
        for model, plan in CASES
    ]
    done = set()
    if arguments.out.exists():
        found = pd.read_csv(arguments.out)
        done = set(zip(found["model"], found["case"], found["seed"], found["rate"], strict=True))
    columns = ["case", *HEAD, *LIMITS]
    with arguments.out.open("a") as file, ProcessPoolExecutor(arguments.workers) as pool:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not done:
            writer.writeheader()
        facts = (arguments.data_dir, arguments.rounds)
        waiting = [pool.submit(run, one, *facts) for one in tasks if tuple(one) not in done]
        deadline = time.monotonic() + arguments.seconds
        for finished in as_completed(waiting):
            if finished.cancelled():
                continue
            writer.writerows(finished.result())
            file.flush()
            if time.monotonic() > deadline:
                for task in waiting:
                    task.cancel()


def run(task: Task, data_dir: Path, last: int) -> list[dict[str, object]]:
    """Train honestly; return the signs of the honest and the planted models of some rounds."""
    torch.set_num_threads(1)
    data = DataSettings(dataset="folder", data_dir=data_dir, public_fraction=0.5)
    splits = load_splits(data, task.seed)
    public = splits.public.pixels()[:1000]
    plan = parse_plan(task.plan)
    spec = ModelSpec(plan.model(task.model), splits.shape, len(splits.classes))
    plan.check(spec)
    order = numpy_rng(task.seed, Purpose.VICTIMS).permutation(len(splits.test))
    own = splits.test.take(order[:BATCH])
    images, labels = own.pixels(), own.labels
    found: list[dict[str, object]] = []
    for number, weights, previous in trained(spec, task, splits.train, last):
        head = dict(zip(HEAD[3:6], (task.seed, task.rate, number), strict=True))
        for variant in ("honest", *(() if task.plan == "curious" else VARIANTS)):
            sent, before = weights, previous
            if variant != "honest":
                planted = plan.weights_for(CLIENT, spec, weights, public)
                sent = adapted(variant, spec, planted, weights, task.seed)
            if variant == "kept" and previous is not None:
                before = plan.weights_for(CLIENT, spec, previous, public)
            signs = signs_of(spec, sent, before, images, labels)
            read = number == READ_AT and plan.reader
            share = recovered(plan, spec, sent, images, labels) if read else ""
            case = {"case": task.plan, "model": task.model, "variant": variant}
            case["plan"] = "" if variant == "honest" else task.plan
            found.append(case | head | {"recovered": share, "commit": commit()} | signs)
    return found


def trained(
    spec: ModelSpec, task: Task, train: Images, last: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """Train by averaged gradients; yield number, weights and previous weights of some rounds."""
    model, module = flat_model(spec), build_model(spec, task.seed)
    weights = Layout.of(module).flatten({k: p.detach() for k, p in module.named_parameters()})
    rng = numpy_rng(task.seed, Purpose.BATCH)
    previous = None
    for number in range(last + 1):
        if number in ROUNDS:
            yield number, weights, previous
        chosen = train.take(rng.choice(len(train), size=ROUND_BATCH, replace=False))
        targets = one_hot(chosen.labels, spec.classes)
        previous = weights
        weights = weights - task.rate * model.eager_gradient(weights, chosen.pixels(), targets)


def adapted(variant: str, spec: ModelSpec, planted: Tensor, honest: Tensor, seed: int) -> Tensor:
    """Return what an attacker who knows the signs sends instead of what a plan says.

    ``noise=x``: noise on each planted tensor, relative to the rms of its units. ``jitter=x``: units
    are multiplied by numbers whose logarithm has this deviation. ``part=x``: this share of the
    units is planted, and the others are as trained.
    """
    name, _, value = variant.partition("=")
    if name in ("published", "kept"):
        return planted
    layout, size = flat_model(spec).layout, float(value)
    mine, theirs = layout.unflatten(planted.clone()), layout.unflatten(honest)
    for key in mine:
        tensor = mine[key]
        if torch.equal(tensor, theirs[key]):
            continue
        units = len(tensor)
        rng = torch_rng(seed, Purpose.PLAN, units)  # the same for a layer's weights and biases
        column = (units, *[1] * (tensor.dim() - 1))
        if name == "noise":
            rms = tensor.flatten(1).square().mean(dim=1).sqrt() if tensor.dim() > 1 else None
            scale = tensor.square().mean().sqrt() if rms is None else rms.reshape(column)
            mine[key] = tensor + size * scale * torch.randn(tensor.shape, generator=rng)
        elif name == "jitter":
            mine[key] = tensor * (size * torch.randn(column, generator=rng)).exp()
        else:
            keep = torch.rand(column, generator=rng) < size
            mine[key] = torch.where(keep, tensor, theirs[key])
    return layout.flatten(mine)


def signs_of(
    spec: ModelSpec, weights: Tensor, previous: Tensor | None, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """Return every sign of a model as a client with this batch sees it."""
    model = flat_model(spec)
    tensors = model.layout.unflatten(weights)
    signs = signs_of_weights(tensors) | signs_of_batch(model, weights, images, labels)
    if previous is not None:
        signs |= signs_of_change(tensors, model.layout.unflatten(previous))
    return signs | {"surprise": sign_of_loss(model, weights, images, labels)}


def recovered(
    plan: ServerPlan, spec: ModelSpec, weights: Tensor, images: Tensor, labels: Tensor
) -> float | str:
    """Return the share of the images that the plan's attack reads off the plain gradient.

    Off an honest model it reads what leaks without any plan. Empty if it reads no such model: then
    how much another reader would find is unknown.
    """
    work = LocalWork(batch_size=len(images))
    seen = observe(images, labels, "none", work, spec=spec, weights=weights, server=plan.spec)
    attack = build_attack(plan.reader)
    if not attack.applies(seen):
        return ""
    (made,) = attack.reconstruct(seen, seed=0)
    return float((score_batch(made.images, made.labels, images, labels).mse < 1e-2).mean())


def score(samples: pd.DataFrame, signs: tuple[str, ...] = tuple(LIMITS)) -> np.ndarray:
    """Return the suspicion of every sample, by some of the signs."""
    rows: list[Mapping[str, float]] = samples[list(signs)].to_dict("records")
    return np.array([suspicion({k: v for k, v in r.items() if not math.isnan(v)}) for r in rows])


def table(samples: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield a row for every model that was trained honestly, then for every plan and variant."""
    views = {
        "all signs": tuple(LIMITS),
        "weights": WEIGHTS,
        "no previous round": tuple(name for name in LIMITS if name not in CHANGE),
    }
    honest = samples[samples["variant"] == "honest"].drop_duplicates([*HEAD[3:6], *LIMITS])
    cuts = {name: np.quantile(score(honest, signs), [0.99, 0.95]) for name, signs in views.items()}
    everyone = score(honest)
    groups = [*honest.groupby(["model", "case", "variant"], sort=False)]
    order = {variant: place for place, variant in enumerate(VARIANTS)}
    planted = samples[samples["variant"] != "honest"]
    planted = planted.sort_values("variant", key=lambda column: column.map(order), kind="stable")
    groups += [*planted.groupby(["model", "case", "variant"], sort=False)]
    for (model, plan, variant), group in groups:
        values = score(group)
        row: dict[str, object] = {"model": model, "plan": plan, "variant": variant}
        row |= {"models": len(group), "at the limits %": percent(values > 1)}
        for name, signs in views.items():
            row[f"{name}, 1 % false alarms"] = percent(score(group, signs) > cuts[name][0])
        row["all signs, 5 % false alarms"] = percent(values > cuts["all signs"][1])
        row["area under ROC"] = f"{area(values, everyone):.3f}"
        row["first sign"] = first_sign(group)
        share = group["recovered"].mean()
        row["recovered %"] = "" if math.isnan(share) else f"{100 * share:.0f}"
        row["commit"] = ", ".join(sorted(set(group["commit"])))
        yield row


def percent(flags: np.ndarray) -> str:
    """Return the share of true flags."""
    return f"{100 * flags.mean():.1f}"


def area(planted: np.ndarray, honest: np.ndarray) -> float:
    """Return the probability that a planted model is more suspicious than an honest one."""
    above = planted[:, None] > honest[None]
    equal = planted[:, None] == honest[None]
    return float((above + equal / 2).mean())


def first_sign(samples: pd.DataFrame) -> str:
    """Return the sign that is most often the largest, relative to its limit."""
    signs = list(LIMITS)
    relative = samples[signs].fillna(0) / pd.Series(LIMITS)
    return str(relative.idxmax(axis=1).mode().iloc[0])


def limits(samples: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield what honest models reach in every sign: half of the seeds, so that others can test."""
    honest = samples[(samples["variant"] == "honest") & (samples["seed"] % 2 == 0)]
    for sign, limit in LIMITS.items():
        values = honest[sign].dropna()
        shares = {f"{share:.1%}": f"{values.quantile(share):.3g}" for share in (0.5, 0.99, 0.998)}
        worst = honest.loc[values.idxmax(), "model"]
        yield {
            "sign": sign,
            **shares,
            "largest": f"{values.max():.3g}",
            "of": worst,
            "limit": limit,
        }


if __name__ == "__main__":
    main()
