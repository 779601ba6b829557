"""A finished or half-finished run as `results` reads it, with the truth derived again."""

import logging
from collections.abc import Iterator, Sequence
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
from fl_sim.observed.reconstructions import (
    Reconstruction,
    load_reconstructions,
    reconstruction_key,
    reconstruction_path,
)
from fl_sim.seeding import Purpose, numpy_rng
from fl_sim.storage.files import StoreError, write_bytes
from fl_sim.study.runs import RunFolder, attack_key, same_inputs, score_key, training_key
from fl_sim.study.trials import Trial, attacked_together, trials_of
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


class Reconstructed(NamedTuple):
    """The file that one attack left of rounds it attacked together, and its key."""

    trial: Trial
    rounds: tuple[int, ...]
    attack: str
    path: Path
    key: str


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
        frames = [self._scores_of(made) for made in self.reconstructed()]
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
        for trial in self.trained:
            for server_round in self.settings.observed_rounds:
                yield trial, server_round, self.observations(trial, server_round)

    def observations(self, trial: Trial, server_round: int) -> list[Observation]:
        """Return what the server saw in a round."""
        return load_observations(round_path(self.folder.observations, trial.name, server_round))

    @cached_property
    def trained(self) -> dict[Trial, str]:
        """The finished trials of these settings, with their keys."""
        found = {}
        for trial in self.trials:
            key, _ = self.folder.trained(trial) or ("", [])
            if same_inputs(key, training_key(trial, self.settings)):
                found[trial] = key
        return found

    def reconstructed(self) -> Iterator[Reconstructed]:
        """Yield the file of every attack that has been carried out on what was observed."""
        other_code = 0
        for trial, training in self.trained.items():
            for rounds in attacked_together(trial, self.settings):
                for attack in self.settings.audit.attacks:
                    root = self.folder.reconstructions
                    path = reconstruction_path(root, trial.name, attack, rounds[-1])
                    expected = attack_key(trial, self.settings, attack, training)
                    key = _standing_key(path, expected)
                    other_code += bool(key) and key != attack_key(trial, self.settings, attack)
                    if key:
                        yield Reconstructed(trial, rounds, attack, path, key)
        if other_code:
            log.warning("%s: other code made %d of the attacks", self.folder.root, other_code)

    def attacked(self) -> Iterator[Attacked]:
        """Yield every attack that has been carried out, with what it attacked and made."""
        for made in self.reconstructed():
            yield from self._load(made)

    def _load(self, made: Reconstructed) -> Iterator[Attacked]:
        guesses, _ = load_reconstructions(made.path)
        for server_round in sorted({guess.round for guess in guesses}):
            own = [guess for guess in guesses if guess.round == server_round]
            seen = {o.partition: o for o in self.observations(made.trial, server_round)}
            observations = [seen[guess.partition] for guess in own]
            yield Attacked(made.trial, server_round, made.attack, observations, own)

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

    def _scores_of(self, made: Reconstructed) -> pd.DataFrame:
        """Return the scores of one file, from the store where they are there and still stand."""
        metrics = self.settings.audit.metrics
        key, path = key_of_scores(made.key, metrics), score_path(self.folder, made.path)
        stored = read_scores(path, key)
        if stored is not None:
            return stored
        frames = [self._score(attacked) for attacked in self._load(made)]
        scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        if self.keep:
            write_scores(path, scores, key)
            facts = {"trial": made.trial.name, "attack": made.attack, "rounds": made.rounds}
            facts |= {"folder": str(self.folder.root), "event": "scored"}
            log.info("scored %s", path, extra=facts)
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


def score_path(folder: RunFolder, reconstructions: Path) -> Path:
    """Return where the scores of a file of reconstructions lie."""
    path = folder.scores / reconstructions.relative_to(folder.reconstructions)
    return path.with_suffix(".parquet")


def key_of_scores(key: str, metrics: Sequence[str]) -> str:
    """Return the key of the scores of reconstructions with this key, by the metrics at hand.

    ``metrics`` are the further ones of the study, by spec.
    """
    return score_key(key, metrics) + "+lpips" * lpips_at_hand()


def write_scores(path: Path, scores: pd.DataFrame, key: str) -> None:
    """Write the scores of one file of reconstructions, with the key of what made them."""
    scores.attrs["key"] = key
    write_bytes(path, scores.to_parquet(index=False))
    scores.attrs.clear()


def read_scores(path: Path, key: str) -> pd.DataFrame | None:
    """Return what `write_scores` wrote, exactly; None where it is missing, broken or stale."""
    if not path.exists():
        return None
    try:
        scores = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, it is made again: %s", path, error)
        return None
    return scores if scores.attrs.pop("key", "") == key else None


def _standing_key(path: Path, expected: str) -> str:
    """Return the key of a file of reconstructions, or nothing where it is missing or stale."""
    if not path.exists():
        return ""
    try:
        key = reconstruction_key(path)
    except StoreError as error:
        log.warning("%s; it is left out", error)
        return ""
    if not same_inputs(key, expected):
        log.warning("%s: other settings or data made it; left out", path)
        return ""
    return key


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
