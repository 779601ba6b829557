"""What attacks reach against a ladder of noise, beside the bounds that no attack may cross.

    python -m benchmarks.bounds.ladder --workers 2 [--out FILE.csv]
    python -m benchmarks.bounds.ladder --plot FILE.csv

Clients send the clipped gradient of one digit at the initial weights, with Gaussian noise, or its
sign. Images are digits, or drawn from a Gaussian with the mean and covariance of the public digits
of a class; only for these is the bound on the error a theorem. Attacks know label and quantizer:

- ``likelihood`` picks, among 1,000 public images and the private one, the one that explains the
  payload best: the best identification that there is.
- ``bayes`` is the likeliest image under that Gaussian (Gauss-Newton), the best reconstruction.
- ``cell`` is the attack of this project.

Rows that are in the file already are not made again.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from attacker.presets import build_attack
from benchmarks.bounds.candidate_test import OTHERS, data_settings, gradients_of
from benchmarks.provenance import commit
from fl_sim.data.datasets import Images, load_splits
from fl_sim.data.public_images import PublicImages
from fl_sim.engines.tasks import run_tasks
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import Observation
from fl_sim.privacy.bounds import (
    covariance_within_classes,
    fisher_information,
    least_mse,
    slopes_of,
)
from fl_sim.quantizers import parse_quantizer
from fl_sim.seeding import Purpose, torch_rng
from fl_sim.study.settings import EngineSettings
from fl_sim.updates.local_update import LocalWork, Update, flat_model, local_update, one_hot
from results.scores.candidate_test import clopper_pearson, likelihood_scores, ranks
from results.scores.scoring import identification_rank
from results.tables.csv_text import write_csv

NOISES = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
DELTA = 1e-5
SPEC = ModelSpec("lenet", (1, 8, 8), 10)
PLOT = Path("docs/images/guarantees/ladder.png")
_STEPS = 6  # of Gauss-Newton
_LINKED = 12  # public images over which the information is averaged


@dataclass(frozen=True)
class Job:
    """All rows of one quantizer on one kind of images."""

    quantizer: str
    noise: float
    images: str
    victims: int


def jobs(victims: int) -> list[Job]:
    """Return the jobs of the ladder."""
    made = []
    for noise in NOISES:
        specs = (f"clip:norm=1+gaussian:sigma={noise:g}", f"noisy_sign:clip=1,noise={noise:g}")
        for spec in specs:
            made += [Job(spec, noise, images, victims) for images in ("digits", "gaussian")]
    return made


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--victims", type=int, default=60)
    made.add_argument("--noises", type=float, nargs="*", default=NOISES)
    made.add_argument("--out", type=Path, default=Path("docs/results/guarantees.csv"))
    made.add_argument("--workers", type=int, default=1, help="0: one per core")
    made.add_argument(
        "--plot", type=Path, metavar="CSV", help="draw docs/images/guarantees/ladder.png"
    )
    arguments = made.parse_args()
    if arguments.plot:
        draw(pd.read_csv(arguments.plot), PLOT)
        return
    rows: list[Mapping[str, object]] = []
    if arguments.out.exists():
        rows = pd.read_csv(arguments.out).to_dict("records")
    known = {(row["quantizer"], row["images"]) for row in rows}
    left = [
        job
        for job in jobs(arguments.victims)
        if job.noise in arguments.noises and (job.quantizer, job.images) not in known
    ]
    for _, found in run_tasks(measure, left, EngineSettings(workers=arguments.workers)):
        rows += [row | {"commit": commit()} for row in found]
        frame = pd.DataFrame(rows)
        write_csv(arguments.out, frame.sort_values(["images", "noise", "quantizer", "attack"]))


def measure(job: Job) -> list[dict[str, object]]:
    """Return one row for each attack."""
    torch.set_num_threads(1)
    images, labels = victims_of(job.images, job.victims)
    observations = observe(job.quantizer, images, labels)
    quantizer, layout = parse_quantizer(job.quantizer), flat_model(SPEC).layout
    guarantee, sigma = quantizer.guarantee(layout.size), quantizer.noise_deviation
    assert guarantee is not None
    assert sigma is not None
    head = {"images": job.images, "quantizer": job.quantizer, "noise": job.noise}
    bounds = {
        "epsilon": guarantee.epsilon(1, DELTA),
        "identified_bound": guarantee.identified(1, 1 / (OTHERS + 1)),
        "mse_bound": least_error(observations[0], sigma),
    }
    rows = []
    for name, attack in attacks_on(job).items():
        ranked, errors = attack(observations, images, labels)
        hits = int((ranked == 1).sum())
        low, high = clopper_pearson(hits, len(ranked), 0.05)
        found = {"identified": hits / len(ranked), "identified_low": low, "identified_high": high}
        spread = errors.std() / len(errors) ** 0.5 if len(errors) else np.nan
        mean = errors.mean() if len(errors) else np.nan
        error = {"mse": mean, "mse_low": mean - 1.96 * spread, "mse_high": mean + 1.96 * spread}
        rows.append(head | {"attack": name} | found | error | bounds | {"victims": len(ranked)})
    return rows


Attack = Callable[[list[Observation], Tensor, Tensor], tuple[np.ndarray, np.ndarray]]
"""Returns the ranks of the private images in the gallery, and mean squared errors, if any."""


def attacks_on(job: Job) -> dict[str, Attack]:
    """Return the attacks of a job by name."""
    found: dict[str, Attack] = {"likelihood": by_likelihood}
    if "gaussian:" in job.quantizer:
        found["bayes"] = by_bayes
    if job.images == "digits":
        found["cell"] = by_cell
    return found


@lru_cache(maxsize=1)
def _public() -> Images:
    return load_splits(data_settings(None), 0).public.take(np.arange(OTHERS))


@lru_cache(maxsize=1)
def _prior() -> tuple[Tensor, Tensor]:
    """Return the mean of each class ``(classes, n)`` and a root of the covariance ``(n, n)``."""
    public = _public()
    pixels, labels = public.pixels().flatten(1).double(), public.labels
    means = torch.stack([pixels[labels == label].mean(dim=0) for label in range(SPEC.classes)])
    values, vectors = torch.linalg.eigh(covariance_within_classes(public.pixels(), labels))
    return means, vectors * values.clamp_min(0).sqrt()


def victims_of(kind: str, count: int) -> tuple[Tensor, Tensor]:
    """Return private images ``(count, 1, 8, 8)`` and their labels."""
    clients = load_splits(data_settings(None), 0).train
    rng = torch_rng(0, Purpose.VICTIMS)
    rows = torch.randperm(len(clients), generator=rng)[:count]
    chosen = clients.take(rows.numpy())
    if kind == "digits":
        return chosen.pixels(), chosen.labels
    means, root = _prior()
    draws = torch.randn(count, len(root), generator=rng, dtype=torch.float64)
    pixels = means[chosen.labels] + draws @ root.T
    return pixels.float().view(count, *SPEC.shape), chosen.labels


def observe(spec: str, images: Tensor, labels: Tensor) -> list[Observation]:
    """Return what the server sees of clients with one image each."""
    model, weights, *_ = gradients_of(data_settings(None), SPEC)
    quantizer, work, seen = parse_quantizer(spec), LocalWork(), []
    targets = one_hot(labels, SPEC.classes)
    for client in range(len(images)):
        own = slice(client, client + 1)
        vector = local_update(model, work, weights, images[own], targets[own], eager=True)
        rng = torch_rng(0, Purpose.QUANTIZER, 1, client)
        payload = quantizer.encode(Update(vector, model.layout), rng)
        seen.append(Observation("ladder", 1, client, SPEC, work, weights, payload))
    return seen


def least_error(seen: Observation, sigma: float) -> float:
    """Return the bound on the mean squared error, as in `results.reading.guarantees`."""
    public = _public()
    sample = public.take(np.arange(_LINKED))
    transform = seen.cell.transform
    information = fisher_information(
        flat_model(SPEC),
        seen.work,
        seen.weights,
        sample.pixels(),
        one_hot(sample.labels, SPEC.classes),
        sigma,
        transform,
    )
    return least_mse(information, covariance_within_classes(public.pixels(), public.labels))


def by_likelihood(
    seen: list[Observation], images: Tensor, labels: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Rank private images among public ones by the likelihood of the payload."""
    model, weights, _, others, _ = gradients_of(data_settings(None), SPEC)
    targets = one_hot(labels, SPEC.classes)
    own = model.gradients(weights, images[:, None], targets[:, None]).detach()
    found = []
    for one, update in zip(seen, own, strict=True):
        private = likelihood_scores([one.cell], update[None])
        public = torch.cat([likelihood_scores([one.cell], part) for part in others.split(100)])
        found.append(int(ranks(private, public[None])[0]))
    return np.array(found), np.array([])


def by_bayes(
    seen: list[Observation], images: Tensor, labels: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruct by Gauss-Newton steps from the mean of the class."""
    found = torch.stack([likeliest(*pair) for pair in zip(seen, labels.tolist(), strict=True)])
    return _graded(found.view_as(images), images)


def likeliest(seen: Observation, label: int) -> Tensor:
    """Return the likeliest image ``(n,)`` of a payload with Gaussian noise, given its label.

    A step is halved until the posterior density grows.
    """
    means, root = _prior()
    model, target = flat_model(SPEC), one_hot(torch.tensor([label]), SPEC.classes)
    cell = seen.cell
    sigma, received = float(cell.step[0]), cell.center.double()

    def sent(pixels: Tensor) -> Tensor:
        image = pixels.view(1, *SPEC.shape)
        return cell.to_code_domain(local_update(model, seen.work, seen.weights, image, target))

    def place(z: Tensor) -> Tensor:
        return (means[label] + root @ z).float()

    def loss(z: Tensor) -> float:
        rest = received - sent(place(z)).double()
        return float(rest.square().sum() / sigma**2 + z.square().sum())

    z = torch.zeros(len(root), dtype=torch.float64)
    best = loss(z)
    for _ in range(_STEPS):
        slopes = root.T @ slopes_of(sent, place(z)) / sigma
        rest = (received - sent(place(z)).double()) / sigma
        inner = slopes @ slopes.T + torch.eye(len(z), dtype=torch.float64)
        step = torch.linalg.solve(inner, slopes @ rest - z)
        for share in (1.0, 0.5, 0.25, 0.125):
            value = loss(z + share * step)
            if value < best:
                z, best = z + share * step, value
                break
        else:
            break
    return place(z)


def by_cell(
    seen: list[Observation], images: Tensor, labels: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruct by the attack `cell`."""
    del labels
    made = build_attack("cell").reconstruct(seen, seed=0, public=PublicImages(*_gallery()))
    return _graded(torch.stack([one.images[0] for one in made]), images)


def _gallery() -> tuple[Tensor, Tensor]:
    return _public().pixels(), _public().labels


def _graded(found: Tensor, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks in the gallery and mean squared errors, pixels not clamped."""
    guess, truth, public = (x.double().numpy() for x in (found, images, _public().pixels()))
    errors = ((guess - truth) ** 2).reshape(len(guess), -1).mean(axis=1)
    return identification_rank(guess, truth, public), errors


def violations(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows on the wrong side of a bound that is a theorem, beyond their interval."""
    many = frame["identified_low"] > frame["identified_bound"]
    near = (frame["mse_high"] < frame["mse_bound"]) & (frame["images"] == "gaussian")
    return frame[many | near]


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Plot what attacks reach and the bounds, against the noise."""
    import matplotlib as mpl  # noqa: PLC0415 - the choice of backend first

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    bound = frame.groupby("noise")[["identified_bound", "mse_bound"]].mean()
    left.plot(bound.index, 100 * bound["identified_bound"], "k-", label="no attack is above")
    right.plot(bound.index, bound["mse_bound"], "k-", label="no attack on Gaussian images is below")
    styles = {"likelihood": "o", "bayes": "s", "cell": "^"}
    for (kind, attack, signs), rows in frame.assign(
        signs=frame["quantizer"].str.startswith("noisy_sign")
    ).groupby(["images", "attack", "signs"]):
        own = rows.sort_values("noise")
        label = f"{attack}, {kind}, {'sign' if signs else 'noise'}"
        style = styles[attack] + (":" if signs else "--")
        fill = "full" if kind == "digits" else "none"
        common = {"ms": 5, "lw": 1, "fillstyle": fill, "label": label}
        left.plot(own["noise"], 100 * own["identified"], style, **common)
        if own["mse"].notna().any():
            right.plot(own["noise"], own["mse"], style, **common)
    left.set(xscale="log", xlabel="noise, in units of the clip", ylabel="identified, %")
    right.set(xscale="log", yscale="log", xlabel="noise, in units of the clip", ylabel="mean MSE")
    for axes in (left, right):
        axes.grid(alpha=0.3, lw=0.4)
        axes.legend(fontsize=6.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
