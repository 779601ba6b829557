"""The plan of a run: its jobs, the file that each job writes, and whether that file stands."""

import json
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fl_sim.observed.observations import round_path
from fl_sim.observed.reconstructions import reconstruction_key, reconstruction_path
from fl_sim.storage.files import StoreError, read_facts
from fl_sim.study.runs import RunFolder, attack_key, same_inputs, score_key, training_key
from fl_sim.study.settings import Settings
from fl_sim.study.trials import Trial, attack_groups, trials_of

log = logging.getLogger("fl_sim.runs")


class MadeBy(Enum):
    """What made the file of a job, according to the key in the file."""

    NOTHING = "the file is missing or cannot be read"
    OTHER_INPUTS = "other settings or data"
    OTHER_CODE = "the same settings and data, but other code"
    THIS_CODE = "the current settings, data and code"


class Job(ABC):
    """One unit of work of a run; its result is one file, which holds the key of the job."""

    @property
    @abstractmethod
    def target(self) -> Path:
        """The file of the result."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Fingerprint of the job's inputs and of the current code."""

    @abstractmethod
    def written_key(self) -> str:
        """Return the key in the file; empty where the file is missing or cannot be read."""

    def made_by(self) -> MadeBy:
        """Return what made the file."""
        written = self.written_key()
        if not written:
            return MadeBy.NOTHING
        if not same_inputs(written, self._key_of_inputs()):
            return MadeBy.OTHER_INPUTS
        return MadeBy.THIS_CODE if written == self.key else MadeBy.OTHER_CODE

    def stands(self) -> bool:
        """Return whether the current settings, data and code made the file."""
        return self.made_by() is MadeBy.THIS_CODE

    def _key_of_inputs(self) -> str:
        """Return a key of the inputs on disk, which other code may have made."""
        return self.key


@dataclass(frozen=True)
class TrainingJob(Job):
    """Train one trial; its file holds the history."""

    trial: Trial
    settings: Settings
    folder: RunFolder

    @property
    def target(self) -> Path:
        """The file of the history, written last."""
        return self.folder.trial_file(self.trial)

    @property
    def key(self) -> str:
        """See `training_key`."""
        return training_key(self.trial, self.settings)

    def written_key(self) -> str:
        """Return the key beside the history; log a file that cannot be read."""
        return self._read()[0]

    def history(self) -> list[Any] | None:
        """Return the history if the training stands, else None."""
        key, history = self._read()
        if key != self.key:
            return None
        for server_round in self.settings.observed_rounds:
            try:
                read_facts(round_path(self.folder.observations, self.trial.name, server_round))
            except StoreError as error:
                log.warning("%s; the trial has to be trained again", error)
                return None
        return history

    def _read(self) -> tuple[str, list[Any]]:
        if not self.target.exists():
            return "", []
        try:
            record = json.loads(self.target.read_text())
            return record["key"], record["history"]
        except (ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; the trial is trained again", self.target)
            return "", []

    def stands(self) -> bool:
        """Return whether the history stands and every observed round can be read."""
        return self.history() is not None

    def attacks(self) -> list["AttackJob"]:
        """Return the jobs that attack what the server observed in this training."""
        return [
            AttackJob(self, attack, rounds)
            for rounds in attack_groups(self.trial, self.settings)
            for attack in self.settings.audit.attacks
        ]


@dataclass(frozen=True)
class AttackJob(Job):
    """Run one attack on one group of rounds of a trial; its file holds the reconstructions.

    Attributes
    ----------
    training : TrainingJob
        What is attacked.
    attack : str
        Name of the attack in the study.
    rounds : tuple of int
        Rounds that are attacked together, see `attack_groups`.
    """

    training: TrainingJob
    attack: str
    rounds: tuple[int, ...]

    @property
    def trial(self) -> Trial:
        """The trial that is attacked."""
        return self.training.trial

    @property
    def folder(self) -> RunFolder:
        """The folder of the run."""
        return self.training.folder

    @property
    def spec(self) -> str:
        """Spec of the attack: the tuned one, if there is one."""
        return self.training.settings.audit.spec(self.attack, self.trial.quantizer)

    @property
    def target(self) -> Path:
        """The file of the reconstructions, named by the last round."""
        root = self.folder.reconstructions
        return reconstruction_path(root, self.trial.name, self.attack, self.rounds[-1])

    @property
    def key(self) -> str:
        """See `attack_key`."""
        return attack_key(self.trial, self.training.settings, self.attack)

    def written_key(self) -> str:
        """Return the key beside the reconstructions; log a file that cannot be read."""
        if not self.target.exists():
            return ""
        try:
            return reconstruction_key(self.target)
        except StoreError as error:
            log.warning("%s; it is left out", error)
            return ""

    def _key_of_inputs(self) -> str:
        trained = self.training.written_key()
        if not same_inputs(trained, self.training.key):
            return self.key
        return attack_key(self.trial, self.training.settings, self.attack, trained)


@dataclass(frozen=True)
class ScoringJob(Job):
    """Score the reconstructions of one attack job; its file holds the scores.

    Attributes
    ----------
    attack : AttackJob
        What made the reconstructions.
    installed : str
        Names the optional metrics that are installed here, for the key.
    """

    attack: AttackJob
    installed: str

    @property
    def target(self) -> Path:
        """The file of the scores."""
        folder, scored = self.attack.folder, self.attack.target
        path = folder.scores / scored.relative_to(folder.reconstructions)
        return path.with_suffix(".parquet")

    @property
    def key(self) -> str:
        """See `score_key`; made from the key of the reconstructions on disk."""
        metrics = self.attack.training.settings.audit.metrics
        return score_key(self.attack.written_key(), metrics) + self.installed

    def written_key(self) -> str:
        """Return the key beside the scores; log a file that cannot be read."""
        import pandas as pd  # noqa: PLC0415 - half a second that training does not need

        if not self.target.exists():
            return ""
        try:
            return str(pd.read_parquet(self.target, columns=[]).attrs.get("key", ""))
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read and is made again: %s", self.target, error)
            return ""


def training_jobs(settings: Settings, folder: RunFolder) -> list[TrainingJob]:
    """Return one training job for each trial of a run."""
    return [TrainingJob(trial, settings, folder) for trial in trials_of(settings)]
