"""What is guaranteed of a run against any attacker: epsilon, and bounds on what can be found.

See docs/explanation/guarantees.md for what each figure means and assumes.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fl_sim.data import private_rows
from fl_sim.data.datasets import Images
from fl_sim.observed.observations import Observation
from fl_sim.privacy.accountant import GaussianGuarantee, Guarantee
from fl_sim.privacy.bounds import covariance_within_classes, fisher_information, least_mse
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import LocalWork, flat_model, one_hot
from results.reading.attacked import private_images, public_images
from results.scores.rows import CLIENT, OBSERVATION, VICTIM
from results.scores.scoring import chance_to_identify

PLAIN_WORK = LocalWork()
"""Work without clipped gradients, of which a quantizer alone decides what is guaranteed."""

SAMPLE = 16
"""Public images over which the information of an update is averaged."""

MAX_PIXELS = 1024
"""Pixels, of all channels, up to which the bound on the error is computed: a minute at most."""


def guarantee_of(quantizer: str, parameters: int, work: LocalWork) -> Guarantee | None:
    """Return what a payload guarantees of a client's update or, with DP-SGD, of one image.

    Of one image only where Gaussian noise follows the clipped gradients: other mechanisms round
    the update first, or depend on its elements, and their guarantee is that of the whole update.
    """
    parsed = parse_quantizer(quantizer)
    of_image = parsed.guarantee(parameters, work.image_norm)
    if isinstance(of_image, GaussianGuarantee):
        return of_image
    return parsed.guarantee(parameters)


def epsilon_of(
    quantizer: str, parameters: int, rounds: int, delta: float, work: LocalWork = PLAIN_WORK
) -> float:
    """Return epsilon of one client over a training; missing if nothing is guaranteed.

    A client that is sampled in some rounds only is counted in all: the server sees who takes part.
    With DP-SGD it is that of one image, as if it were in every batch.
    """
    guarantee = guarantee_of(quantizer, parameters, work)
    return np.nan if guarantee is None else guarantee.epsilon(rounds, delta)


def identified_bound(
    quantizer: str, parameters: int, rounds: int, victims: pd.DataFrame, trials: Sequence[Trial]
) -> float:
    """Return the largest share of the victims that any attacker can identify, on average.

    Each victim counts with the payloads that depend on it, and with the chance of a blind guess.

    Parameters
    ----------
    quantizer : str
        Spec.
    parameters : int
        Elements of an update.
    rounds : int
        Rounds of the training.
    victims : DataFrame
        Rows with the columns `VICTIM` and ``cohort``, each once.
    trials : sequence of Trial
        One of each seed.
    """
    parsed = parse_quantizer(quantizer)
    guarantee = guarantee_of(quantizer, parameters, trials[0].work)
    if guarantee is None or victims.empty:
        return np.nan
    bounds: list[float] = []
    for trial in trials:
        own = victims[victims["seed"] == trial.seed]
        uses = rounds_of(trial, rounds, own)
        if parsed.carries_residual:  # what was not sent stays in all later payloads
            uses = [rounds] * len(uses)
        bounds.extend(_bounds(guarantee, uses, _chances(trial, own)))
    return fmean(bounds)


def _bounds(guarantee: Guarantee, uses: Iterable[int], chances: Iterable[float]) -> Iterator[float]:
    known: dict[tuple[int, float], float] = {}
    for key in zip(uses, chances, strict=True):
        if key not in known:
            known[key] = guarantee.identified(*key) if key[1] < 1 else 1.0
        yield known[key]


def rounds_of(trial: Trial, rounds: int, victims: pd.DataFrame) -> list[int]:
    """Return in how many rounds of a training each victim is in its client's batch."""
    counts: dict[int, Counter[int]] = {}
    found = []
    for _, server_round, partition, image in victims[VICTIM].itertuples(index=False):
        if partition not in counts:
            counts[partition] = Counter(
                row for one in range(1, rounds + 1) for row in _rows(trial, partition, one)
            )
        found.append(counts[partition][_rows(trial, partition, server_round)[image]])
    return found


def _rows(trial: Trial, partition: int, server_round: int) -> list[int]:
    rows = private_rows(trial.federation, trial.work, partition, server_round)
    return [int(row) for row in rows]


def _chances(trial: Trial, victims: pd.DataFrame) -> list[float]:
    """Return the chance of a blind guess at each victim.

    The scores give each image of a batch, or of a sum, the best of all guesses, so they add up.
    """
    gallery = public_images(trial)
    batches = {
        key: chance_to_identify(private_images(trial, *key)[0], gallery)
        for key in victims[CLIENT[1:]].drop_duplicates().itertuples(index=False, name=None)
    }
    clients = victims.groupby(OBSERVATION)["partition"].transform("nunique")
    each = zip(victims[VICTIM].itertuples(index=False), trial.work.images * clients, strict=True)
    return [
        min(1.0, size * float(batches[server_round, partition][image]))
        for (_, server_round, partition, image), size in each
    ]


def mse_bound(public: Images, rounds: Sequence[Sequence[Observation]]) -> float:
    """Return the mean over rounds of the least mean squared error that any estimate can have.

    Missing unless payloads are made of updates of one image plus Gaussian noise, or images are
    larger than `MAX_PIXELS`. A client that repeats its image is observed in all rounds together.

    Parameters
    ----------
    public : Images
        Their covariance is the private images'.
    rounds : sequence of sequence of Observation
        What was observed in each round of a trial.
    """
    first = rounds[0][0]
    sigma = parse_quantizer(first.payload.spec).noise_deviation
    if sigma is None or first.work.images > 1 or public.data[0].numel() > MAX_PIXELS:
        return np.nan
    covariance = covariance_within_classes(public.pixels(), public.labels)
    known = [_information(public, seen[0], sigma) for seen in rounds]
    if first.work.fixed_batch:
        return least_mse(torch.stack(known).sum(dim=0), covariance)
    return fmean(least_mse(one, covariance) for one in known)


def _information(public: Images, seen: Observation, sigma: float) -> Tensor:
    sample = public.take(np.arange(min(SAMPLE, len(public))))
    targets = one_hot(sample.labels, seen.model.classes)
    transform = seen.cell.transform
    model = flat_model(seen.model)
    return fisher_information(
        model, seen.work, seen.weights, sample.pixels(), targets, sigma, transform
    )
