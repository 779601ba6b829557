"""A finished or half-finished run as `results` reads it, with the truth derived again."""

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.data import private_batch
from fl_sim.observed.observations import Observation, load_observations, round_path
from fl_sim.observed.reconstructions import Reconstruction, load_reconstructions
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.storage.files import write_bytes
from fl_sim.study.plan import AttackJob, MadeBy, ScoringJob, TrainingJob, training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import flat_model
from results.scores.baselines import score_baselines
from results.scores.gates import Truth
from results.scores.metrics import further_metrics
from results.scores.perceptual import lpips_at_hand
from results.scores.victims import score_victims
from results.tables import OBSERVATION, VICTIM, mark_strongest, results_table

log = logging.getLogger("fl_sim.results")

GALLERY_SIZE = 1000
"""Public images among which a reconstruction must name its victim, at most."""

_HISTORY_COLUMNS = ["quantizer", "seed", "round", "accuracy", "loss"]
_HISTORY_COLUMNS += ["uplink_bytes", "updates", "dropped"]
_SAME_INPUTS = (MadeBy.THIS_CODE, MadeBy.OTHER_CODE)


class Attacked(NamedTuple):
    """One attack on one observed round of one trial; observations and guesses are paired."""

    trial: Trial
    round: int
    attack: str
    observations: list[Observation]
    guesses: list[Reconstruction]


class RunReader:
    """What one run wrote, and the truth it does not hold.

    Parameters
    ----------
    root : Path
        Folder of the run.
    keep : bool
        Whether scores are written below the folder, so that none is computed twice.

    Raises
    ------
    SettingsError
        If the folder is not that of a run, or was purged, or a further metric cannot be used.
    """

    def __init__(self, root: Path, *, keep: bool = False) -> None:
        self.keep = keep
        self.folder = RunFolder(root)
        self.folder.require_kept()
        self.settings = self.folder.settings()
        self.trials = trials_of(self.settings)
        self.metrics = further_metrics(self.settings.audit.metrics)

    @cached_property
    def parameters(self) -> int:
        """Elements of one update."""
        return flat_model(self.trials[0].model_spec).layout.size

    @cached_property
    def history(self) -> pd.DataFrame:
        """``history.csv``; empty before the first trial is trained."""
        if not self.folder.history_file.exists():
            return pd.DataFrame(columns=_HISTORY_COLUMNS)
        return pd.read_csv(self.folder.history_file)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Score every attack on every victim: one row per reconstructed image and attack.

        Columns: ``quantizer``, ``seed``, ``round``, ``partition``, ``attack``, those of
        `score_batch`, ``recovered`` (MSE below `SUCCESS_MSE` of `results.scores.gates`),
        ``status`` and ``evaluations`` of the attack, those of `results.scores.gates.examine`, and
        ``strongest`` (see `results.tables.mark_strongest`). Each further metric has a column.
        """
        frames = [self._scores_of(job) for job in self.reconstructed()]
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            types = _SCORE_TYPES | {metric.column: "float64" for metric in self.metrics}
            return pd.DataFrame(columns=list(types)).astype(types)
        scores = pd.concat(frames, ignore_index=True)
        scores["strongest"] = mark_strongest(scores)
        return scores

    @cached_property
    def results(self) -> pd.DataFrame:
        """Sum up the study, one row per quantizer: `results.tables.results_table`."""
        return results_table(
            list(dict.fromkeys(trial.quantizer for trial in self.trials)),
            history=self.history,
            scores=self.scores,
            baselines=self.baselines,
            entropy_coded=self.entropy_coded,
            parameters=self.parameters,
            server=self.settings.server,
            metrics=[metric.column for metric in self.metrics],
        )

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """Score the baselines on every victim; the quantizers share their victims."""
        victims = self.scores[OBSERVATION].drop_duplicates().sort_values(OBSERVATION)
        frames = []
        for seed, rows in victims.groupby("seed"):
            trial = next(trial for trial in self.trials if trial.seed == seed)
            truth = [
                self.truth(trial, server_round, partition)[0]
                for _, server_round, partition in rows.itertuples(index=False)
            ]
            frame = score_baselines(torch.cat(truth), self.gallery(trial))
            batches = rows.loc[rows.index.repeat(trial.work.images)].reset_index(drop=True)
            repeated = pd.concat([batches] * frame["baseline"].nunique(), ignore_index=True)
            frame["image"] %= trial.work.images
            frames.append(pd.concat([repeated, frame], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def truth(self, trial: Trial, server_round: int, partition: int) -> tuple[Tensor, Tensor]:
        """Return the private images and labels of one client in one round."""
        return private_batch(trial.federation, trial.work, partition, server_round)

    def gallery(self, trial: Trial) -> Tensor:
        """Return the public images a reconstruction is held against."""
        return trial.federation.splits.public.pixels(slice(GALLERY_SIZE))

    @cached_property
    def entropy_coded(self) -> dict[str, float]:
        """Mean bytes of an observed update behind an entropy coder, by quantizer."""
        sizes: dict[str, list[int]] = {}
        for trial, _, observations in self.observed():
            coded = [entropy_coded_bytes(seen.payload) for seen in observations]
            sizes.setdefault(trial.quantizer, []).extend(coded)
        return {quantizer: fmean(coded) for quantizer, coded in sizes.items()}

    def observed(self) -> Iterator[tuple[Trial, int, list[Observation]]]:
        """Yield what the server saw, round by round of each finished trial."""
        for job in self.trained:
            for server_round in self.settings.observed_rounds:
                yield job.trial, server_round, self.observations(job.trial, server_round)

    def observations(self, trial: Trial, server_round: int) -> list[Observation]:
        """Return what the server saw in a round."""
        return load_observations(round_path(self.folder.observations, trial.name, server_round))

    @cached_property
    def trained(self) -> list[TrainingJob]:
        """The trainings that were finished with these settings and data, be it by other code."""
        jobs = training_jobs(self.settings, self.folder)
        return [job for job in jobs if job.made_by() in _SAME_INPUTS]

    def reconstructed(self) -> Iterator[AttackJob]:
        """Yield every attack that has been carried out on what was observed."""
        other_code = 0
        for job in (job for training in self.trained for job in training.attacks()):
            made_by = job.made_by()
            other_code += made_by is MadeBy.OTHER_CODE
            if made_by in _SAME_INPUTS:
                yield job
            elif made_by is MadeBy.OTHER_INPUTS:
                log.warning("%s: other settings or data made it; left out", job.target)
        if other_code:
            log.warning("%s: other code made %d of the attacks", self.folder.root, other_code)

    def attacked(self) -> Iterator[Attacked]:
        """Yield every attack that has been carried out, with what it attacked and made."""
        for job in self.reconstructed():
            yield from self._load(job)

    def _load(self, job: AttackJob) -> Iterator[Attacked]:
        guesses, _ = load_reconstructions(job.target)
        for server_round in sorted({guess.round for guess in guesses}):
            own = [guess for guess in guesses if guess.round == server_round]
            seen = {o.partition: o for o in self.observations(job.trial, server_round)}
            observations = [seen[guess.partition] for guess in own]
            yield Attacked(job.trial, server_round, job.attack, observations, own)

    def victim(self, row: "pd.Series") -> Tensor:
        """Return the private image ``(C, H, W)`` of a row of scores."""
        trial = next(trial for trial in self.trials if trial.seed == row["seed"])
        return self.truth(trial, row["round"], row["partition"])[0][row["image"]]

    def guess(self, row: "pd.Series") -> Tensor:
        """Return the reconstructed image ``(C, H, W)`` of a row of scores, not clamped."""
        made = self._guesses[row["quantizer"], row["seed"], row["round"], row["attack"]]
        return made[row["partition"]][row["guess"]]

    @cached_property
    def _guesses(self) -> dict[tuple[str, int, int, str], dict[int, Tensor]]:
        """Reconstructed batches by quantizer, seed, round and attack, then by partition."""
        return {
            (a.trial.quantizer, a.trial.seed, a.round, a.attack): {
                guess.partition: guess.images for guess in a.guesses
            }
            for a in self.attacked()
        }

    def _scores_of(self, attack: AttackJob) -> pd.DataFrame:
        """Return the scores of one file, from the store where they still stand."""
        job = scoring_job(attack)
        stored = read_scores(job)
        if stored is not None:
            return stored
        frames = [self._score(attacked) for attacked in self._load(attack)]
        scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        if self.keep:
            write_scores(job, scores)
            facts = {"trial": attack.trial.name, "attack": attack.attack, "rounds": attack.rounds}
            facts |= {"folder": str(self.folder.root), "event": "scored"}
            log.info("scored %s", job.target, extra=facts)
        return scores

    def _score(self, attacked: Attacked) -> pd.DataFrame:
        trial, server_round, guesses = attacked.trial, attacked.round, attacked.guesses
        batches = [self.truth(trial, server_round, guess.partition) for guess in guesses]
        truth = Truth(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        scores = score_victims(
            attacked.observations, guesses, truth, self.gallery(trial), self.metrics
        )
        scores["round"], scores["attack"] = server_round, attacked.attack
        scores.insert(0, "quantizer", trial.quantizer)
        scores.insert(1, "seed", trial.seed)
        return scores


def scoring_job(attack: AttackJob) -> ScoringJob:
    """Return the job that scores an attack with the metrics at hand."""
    return ScoringJob(attack, "+lpips" * lpips_at_hand())


def write_scores(job: ScoringJob, scores: pd.DataFrame) -> None:
    """Write the scores of one file of reconstructions, with the key of what made them."""
    scores.attrs["key"] = job.key
    write_bytes(job.target, scores.to_parquet(index=False))
    scores.attrs.clear()


def read_scores(job: ScoringJob) -> pd.DataFrame | None:
    """Return what `write_scores` wrote, exactly; None where it is missing, broken or stale."""
    if not job.stands():
        return None
    try:
        scores = pd.read_parquet(job.target)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, it is made again: %s", job.target, error)
        return None
    scores.attrs.clear()
    return scores


def random_victims(scores: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw victims that all quantizers share, by seed: never by hand, never the best.

    Where a run is not finished, those that the most quantizers share.

    Returns
    -------
    DataFrame
        At most ``count`` rows with the columns `results.tables.VICTIM`, in the order drawn.
    """
    strongest = scores[scores["strongest"]]
    holders = strongest.groupby(VICTIM)["quantizer"].nunique()
    shared = holders[holders == holders.max()].index.to_frame(index=False)
    rng = numpy_rng(0, Purpose.VICTIMS, 0)
    return shared.iloc[rng.choice(len(shared), size=min(count, len(shared)), replace=False)]


_SCORE_TYPES = {
    "quantizer": "str",
    "seed": "int64",
    "round": "int64",
    "partition": "int64",
    "attack": "str",
    "image": "int64",
    "mse": "float64",
    "psnr": "float64",
    "ssim": "float64",
    "correlation": "float64",
    "identified": "bool",
    "labels_recovered": "float64",
    "recovered": "bool",
    "failed": "bool",
    "masked": "bool",
    "unexplained": "bool",
    "inconsistency": "float64",
    "yardstick": "float64",
    "update_rmse": "float64",
    "identified_chance": "float64",
    "label_chance": "float64",
    "strongest": "bool",
}
