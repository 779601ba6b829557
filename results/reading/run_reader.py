"""Read one run, finished or not: its tables and the images of its victims."""

from functools import cached_property
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fl_sim.coding.entropy import entropy_coded_bytes
from fl_sim.metrics import further_metrics
from fl_sim.observed.observations import Observation
from fl_sim.study.plan import TrainingJob, training_jobs
from fl_sim.study.runs import RunFolder
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import flat_model
from results.reading.attack_scores import attack_scores
from results.reading.attacked import (
    finished_attacks,
    finished_trainings,
    load_attacked,
    load_round,
    private_images,
    public_images,
)
from results.reading.guarantees import epsilon_of, identified_bound, mse_bound
from results.scores.baselines import score_baselines
from results.scores.equal_points import equal_points
from results.scores.rows import CLIENT, VICTIM, compare_attacks, no_scores
from results.tables.summary import results_table
from results.tables.verdicts import GUARANTEES

_HISTORY_COLUMNS = ["quantizer", "seed", "round", "accuracy", "loss"]
_HISTORY_COLUMNS += ["uplink_bytes", "updates", "dropped"]


class RunReader:
    """The tables of one run, and its private images, which are derived from the seed again.

    Parameters
    ----------
    root : Path
        Folder of the run.
    keep : bool
        Whether computed scores are stored in the folder, so that they are reused.

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

        Columns: ``quantizer``, ``seed``, those of `results.scores.victims.score_victims`, and
        ``strongest`` (see `compare_attacks`).
        """
        attacks = finished_attacks(self._trained, self.folder.root)
        frames = [attack_scores(attack, self.metrics, keep=self.keep) for attack in attacks]
        frames = [frame for frame in frames if len(frame)]
        if not frames:
            return no_scores(self.metrics)
        return compare_attacks(pd.concat(frames, ignore_index=True))

    @cached_property
    def results(self) -> pd.DataFrame:
        """Sum up the run, one row per quantizer: `results.tables.summary.results_table`."""
        return self._table(self.scores, self.baselines, self.guarantees)

    @cached_property
    def families(self) -> pd.DataFrame:
        """What each family of quantizers reaches: `results.scores.equal_points.equal_points`."""
        return equal_points(self.results, self.history, self.scores)

    @cached_property
    def results_by_round(self) -> pd.DataFrame:
        """`results` of each observed round alone, its number in the column ``round`` in front.

        Accuracy and bytes are those of the whole training.
        """
        frames = []
        for server_round, scores in self.scores.groupby("round"):
            baselines = self.baselines[self.baselines["round"] == server_round]
            bounds = self.guarantees.assign(mse_bound=np.nan)  # which is a mean over the rounds
            frame = self._table(scores, baselines, bounds)
            frame.insert(0, "round", server_round)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else self.results

    def _table(
        self, scores: pd.DataFrame, baselines: pd.DataFrame, guarantees: pd.DataFrame
    ) -> pd.DataFrame:
        return results_table(
            list(dict.fromkeys(trial.quantizer for trial in self.trials)),
            history=self.history,
            scores=scores,
            baselines=baselines,
            entropy_coded=self.entropy_coded,
            parameters=self.parameters,
            server=self.settings.server,
            aggregation=self.settings.training.aggregation,
            metrics=[metric.column for metric in self.metrics],
            guarantees=guarantees,
        )

    @cached_property
    def guarantees(self) -> pd.DataFrame:
        """What is guaranteed against any attacker, one row per quantizer: `GUARANTEES`."""
        rounds, delta = self.settings.training.rounds, self.settings.audit.delta
        of_seed = {trial.seed: trial for trial in self.trials}
        rows = []
        for quantizer in dict.fromkeys(trial.quantizer for trial in self.trials):
            work = self.trials[0].work
            epsilon = epsilon_of(quantizer, self.parameters, rounds, delta, work)
            own = self.scores[self.scores["quantizer"] == quantizer]
            victims = own[[*VICTIM, "cohort"]].drop_duplicates()
            sizes = (self.parameters, rounds)
            most = identified_bound(quantizer, *sizes, victims, list(of_seed.values()))
            least = [
                mse_bound(job.trial.federation.splits.public, self._observed(job))
                for job in self._trained
                if job.trial.quantizer == quantizer and len(victims)
            ]
            missing = delta if pd.notna(epsilon) else np.nan
            rows.append((quantizer, epsilon, missing, most, fmean(least) if least else np.nan))
        return pd.DataFrame(rows, columns=["quantizer", *GUARANTEES])

    def _observed(self, job: TrainingJob) -> list[list[Observation]]:
        return [load_round(job, one) for one in self.settings.observed_rounds]

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """Score the baselines on every victim; the quantizers share their victims."""
        victims = self.scores[CLIENT].drop_duplicates().sort_values(CLIENT)
        frames = []
        for seed, rows in victims.groupby("seed"):
            trial = self._trial_of(seed)
            truth = [
                private_images(trial, server_round, partition)[0]
                for _, server_round, partition in rows.itertuples(index=False)
            ]
            frame = score_baselines(torch.cat(truth), public_images(trial), self.metrics)
            batches = rows.loc[rows.index.repeat(trial.work.images)].reset_index(drop=True)
            repeated = pd.concat([batches] * frame["baseline"].nunique(), ignore_index=True)
            frame["image"] %= trial.work.images
            frames.append(pd.concat([repeated, frame], axis=1))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    @cached_property
    def entropy_coded(self) -> dict[str, float]:
        """Mean bytes of an observed update after an entropy coder, by quantizer; none of sums."""
        sizes: dict[str, list[int]] = {}
        for job in (one for one in self._trained if one.trial.aggregation is None):
            for server_round in self.settings.observed_rounds:
                seen = load_round(job, server_round)
                coded = [entropy_coded_bytes(one.payload) for one in seen]
                sizes.setdefault(job.trial.quantizer, []).extend(coded)
        return {quantizer: fmean(coded) for quantizer, coded in sizes.items()}

    def victim(self, row: "pd.Series") -> Tensor:
        """Return the private image ``(C, H, W)`` of a row of scores."""
        images, _ = private_images(self._trial_of(row["seed"]), row["round"], row["partition"])
        return images[row["image"]]

    def guess(self, row: "pd.Series") -> Tensor:
        """Return the reconstructed image ``(C, H, W)`` of a row of scores, not clamped."""
        made = self._guesses[row["quantizer"], row["seed"], row["round"], row["attack"]]
        return made[row["partition"]][row["guess"]]

    @cached_property
    def _trained(self) -> list[TrainingJob]:
        return finished_trainings(training_jobs(self.settings, self.folder))

    @cached_property
    def _guesses(self) -> dict[tuple[str, int, int, str], dict[int, Tensor]]:
        """Reconstructed batches by quantizer, seed, round and attack, then by partition."""
        return {
            (a.trial.quantizer, a.trial.seed, a.round, a.attack): {
                client: guess.images
                for seen, guess in zip(a.observations, a.guesses, strict=True)
                for client in seen.clients
            }
            for job in finished_attacks(self._trained, self.folder.root)
            for a in load_attacked(job)
        }

    def _trial_of(self, seed: object) -> Trial:
        """Return a trial of a seed; all of them share the data."""
        return next(trial for trial in self.trials if trial.seed == seed)
