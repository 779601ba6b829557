"""Score one attack on one round: metrics against the truth, and gates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_sim.metrics import FurtherMetric
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from results.scores.gates import SUCCESS_MSE, Truth, examine
from results.scores.rows import BLOCKS_COLUMN
from results.scores.scoring import label_chance, match, mse_of_pairs, score_batches


def score_victims(
    observations: Sequence[Observation],
    guesses: Sequence[Reconstruction],
    truth: Truth,
    public: Tensor,
    metrics: Sequence[FurtherMetric] = (),
) -> pd.DataFrame:
    """Score one attack on one round: one row per private image.

    Parameters
    ----------
    observations : sequence of Observation
        Of one round; they share model and weights.
    guesses : sequence of Reconstruction
        One for each observation.
    truth : Truth
        The private batches; those of all clients behind an observation, in their order.
    public : Tensor
        ``(m, C, H, W)`` public images.
    metrics : sequence of FurtherMetric
        Of other modules, a column each.

    Returns
    -------
    DataFrame
        ``round``, ``partition``, ``cohort`` (the first client of the sum that was seen, or the
        client itself) and ``attack``, the columns of `score_batches`
        without ``batch``, ``mse_best_known`` (the lowest MSE of all guesses that the attack chose
        from), ``recovered`` (MSE below `SUCCESS_MSE`), those of `examine` (the gates),
        ``status`` and ``evaluations`` of the attack, and what a blind guess reaches:
        ``identified_chance`` (one among the public images and the true one) and ``label_chance``
        (`results.scores.scoring.label_chance`).
    """
    images = torch.stack([guess.images for guess in guesses])
    labels = torch.stack([guess.labels for guess in guesses])
    scores = score_batches(images, labels, truth.images, truth.labels, public, metrics)
    scores["mse_best_known"] = np.minimum(scores["mse"], _best_known(guesses, truth.images))
    scores["recovered"] = scores["mse"] < SUCCESS_MSE
    facts = examine(observations, guesses, truth)
    facts.insert(0, "cohort", [guess.partition for guess in guesses])
    facts["clients"] = [one.clients for one in observations]
    facts[BLOCKS_COLUMN] = [list(guess.evidence) for guess in guesses]
    facts["status"] = [guess.status for guess in guesses]
    facts["evaluations"] = [guess.evaluations for guess in guesses]
    facts["identified_chance"] = 1 / (len(public) + 1)
    classes = observations[0].model.classes
    facts["label_chance"] = [label_chance(known, classes) for known in truth.labels.tolist()]
    scores = scores.join(facts, on="batch").drop(columns="batch")
    own = observations[0].work.images // len(observations[0].clients)
    pairs = zip(scores.pop("clients"), scores["image"] // own, strict=True)
    scores["image"] %= own
    scores.insert(0, "round", observations[0].round)
    scores.insert(1, "partition", [clients[place] for clients, place in pairs])
    scores.insert(2, "cohort", scores.pop("cohort"))
    scores.insert(3, "attack", guesses[0].attack)
    return scores


def _best_known(guesses: Sequence[Reconstruction], truth: Tensor) -> NDArray[np.float64]:
    """Return the lowest MSE that any guess that was not chosen has at each private image."""
    best = np.full(truth.shape[:2], np.inf)
    for row, (guess, private) in enumerate(zip(guesses, truth, strict=True)):
        for other in guess.others:
            order = torch.from_numpy(match(other, private))
            best[row] = np.minimum(best[row], mse_of_pairs(other[order], private))
    return best.flatten()
