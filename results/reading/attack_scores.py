"""The scores of one attack's reconstructions: computed once, stored in the run, reused."""

import logging
from collections.abc import Sequence

import pandas as pd

from fl_sim.metrics import FurtherMetric
from fl_sim.storage.files import write_bytes
from fl_sim.study.plan import AttackJob, ScoringJob
from results.reading.attacked import Attacked, load_attacked, public_images
from results.scores.perceptual import lpips_at_hand
from results.scores.victims import score_victims

log = logging.getLogger("fl_sim.results")


def scoring_job(attack: AttackJob) -> ScoringJob:
    """Return the job that scores an attack with the metrics that are installed."""
    return ScoringJob(attack, "+lpips" * lpips_at_hand())


def attack_scores(
    attack: AttackJob, metrics: Sequence[FurtherMetric], *, keep: bool
) -> pd.DataFrame:
    """Return the scores of an attack: from their file if it stands, else computed.

    Parameters
    ----------
    attack : AttackJob
        Whose reconstructions are scored.
    metrics : sequence of FurtherMetric
        A column each.
    keep : bool
        Whether computed scores are written to their file.

    Returns
    -------
    DataFrame
        ``quantizer``, ``seed`` and the columns of `score_victims`.
    """
    job = scoring_job(attack)
    stored = read_scores(job)
    if stored is not None:
        return stored
    frames = [_score(attacked, metrics) for attacked in load_attacked(attack)]
    scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if keep:
        write_scores(job, scores)
        facts = {"trial": attack.trial.name, "attack": attack.attack, "rounds": attack.rounds}
        facts |= {"folder": str(attack.folder.root), "event": "scored"}
        log.info("scored %s", job.target, extra=facts)
    return scores


def write_scores(job: ScoringJob, scores: pd.DataFrame) -> None:
    """Write the scores of one file of reconstructions, with the key of what made them."""
    scores.attrs["key"] = job.key
    write_bytes(job.target, scores.to_parquet(index=False))
    scores.attrs.clear()


def read_scores(job: ScoringJob) -> pd.DataFrame | None:
    """Return exactly what `write_scores` wrote; None if it is missing, broken or stale."""
    if not job.stands():
        return None
    try:
        scores = pd.read_parquet(job.target)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is made again: %s", job.target, error)
        return None
    scores.attrs.clear()
    return scores


def _score(attacked: Attacked, metrics: Sequence[FurtherMetric]) -> pd.DataFrame:
    trial = attacked.trial
    scores = score_victims(
        attacked.observations, attacked.guesses, attacked.truth, public_images(trial), metrics
    )
    scores["round"], scores["attack"] = attacked.round, attacked.attack
    scores.insert(0, "quantizer", trial.quantizer)
    scores.insert(1, "seed", trial.seed)
    return scores
