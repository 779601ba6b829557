"""The folder of a run: where each output lies, and the keys of what determines it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fl_sim.data import load_splits
from fl_sim.floors import ATTACK_CODE, SCORING_CODE, TRAINING_CODE
from fl_sim.models.weights import digest_of, read_weights
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import module_of, names
from fl_sim.specs import Spec
from fl_sim.storage.files import write_text
from fl_sim.storage.fingerprint import code_version, fingerprint
from fl_sim.study.settings import Settings, SettingsError, dump_settings, load_settings
from fl_sim.study.trials import Trial, attack_groups


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run below ``root``."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """The resolved settings."""
        return self.root / "settings.toml"

    @property
    def tuned_file(self) -> Path:
        """What attacks were tuned to; the setting ``tuned`` reads it."""
        return self.root / "tuned.toml"

    @property
    def provenance_file(self) -> Path:
        """With what code, on what machine and in what time it was made."""
        return self.root / "provenance.json"

    @property
    def history_file(self) -> Path:
        """Accuracy, loss and bytes of each round of each trial."""
        return self.root / "history.csv"

    @property
    def observations(self) -> Path:
        """What the server saw."""
        return self.root / "observations"

    @property
    def reconstructions(self) -> Path:
        """What the attacks made of it."""
        return self.root / "reconstructions"

    @property
    def scores(self) -> Path:
        """Scores of each reconstructed file."""
        return self.root / "scores"

    @property
    def purged_file(self) -> Path:
        """The day on which `fl_sim.study.purge.purge` deleted what the run held of people."""
        return self.root / "purged.txt"

    @property
    def purged(self) -> str:
        """The day of the purge, ``2026-01-31``; empty if there was none since the last training."""
        return self.purged_file.read_text().strip() if self.purged_file.exists() else ""

    def trial_file(self, trial: Trial) -> Path:
        """Return the history of one finished trial; it is written last, so it marks the end."""
        return self.root / "training" / f"{trial.name}.json"

    def delete_outputs(self) -> None:
        """Delete what was trained, attacked and scored, so that all of it is made again."""
        for made in (self.root / "training", self.observations, self.reconstructions, self.scores):
            shutil.rmtree(made, ignore_errors=True)

    def create(self, settings: Settings) -> None:
        """Make the folder and write the resolved settings; what was purged may be made again."""
        write_text(self.settings_file, dump_settings(settings))
        self.purged_file.unlink(missing_ok=True)

    def settings(self) -> Settings:
        """Return the settings this run was made with."""
        self.require()
        return load_settings(self.settings_file, {})

    def require(self) -> None:
        """Raise `SettingsError` if this is not the folder of a run or study."""
        if not self.settings_file.is_file():
            raise SettingsError("run", str(self.root), "is not the folder of a run")

    def require_kept(self) -> None:
        """Raise `SettingsError` if the run was purged since it was trained."""
        if self.purged:
            reason = f"purged on {self.purged}; its tables stay, the rest needs a new training"
            raise SettingsError("run", str(self.root), reason)


def training_key(trial: Trial, settings: Settings) -> str:
    """Fingerprint all that determines a trial's history and observations.

    The images count, not the folder they were read from; and of other people's parts the code of
    those that the trial uses.
    """
    anywhere = replace(trial, data=trial.data.model_copy(update={"data_dir": None}), plugin=())
    training = {name: one for name, one in settings.training.facts.items() if name != "timeout"}
    inputs = {
        "trial": anywhere.to_json(),
        "images": load_splits(trial.data, trial.seed).digest,
        "training": training,
        "rounds": settings.observed_rounds,
    }
    if settings.initial_weights is not None:
        inputs["initial_weights"] = weights_digest(settings.initial_weights)
    return _key(inputs, code_version((*TRAINING_CODE, *_parts_of(trial))))


def weights_digest(path: Path) -> str:
    """Return 16 hexadecimal digits that stand for the tensors of a file, wherever it lies.

    Raises
    ------
    SettingsError
        If it cannot be read.
    """
    try:
        facts = path.stat()
        return _digest_of_file(path, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError) as error:
        raise SettingsError("initial_weights", str(path), str(error)) from error


@lru_cache(maxsize=8)
def _digest_of_file(path: Path, modified: int, size: int) -> str:
    del modified, size  # of the file whose digest is kept
    return digest_of(read_weights(path))


def _parts_of(trial: Trial) -> tuple[str, ...]:
    """Return the modules that register the parts a trial names."""
    named = {
        "model": trial.model,
        "dataset": trial.data.dataset,
        "partitioner": trial.data.partition,
        "server": trial.server,
    }
    modules = {module_of(kind, Spec.parse(spec).name) for kind, spec in named.items()}
    return tuple(sorted(modules | parse_quantizer(trial.quantizer).modules))


def attack_key(trial: Trial, settings: Settings, attack: str, training: str = "") -> str:
    """Fingerprint all that determines an attack's reconstructions of a trial.

    ``training`` is the key of what is attacked, where other code than this may have made it. The
    code of every preset is in `ATTACK_CODE`; that of an attack of another module is added.
    """
    spec = settings.audit.spec(attack, trial.quantizer)
    name = Spec.parse(spec).name
    modules = (module_of("attack", name),) if name in names("attack") else ()
    inputs = {
        "training": training or training_key(trial, settings),
        "attack": spec,
        "victims": settings.audit.victims,
        "together": attack_groups(trial, settings),
    }
    return _key(inputs, code_version((*ATTACK_CODE, *modules)))


def score_key(attack: str, metrics: Sequence[str] = ()) -> str:
    """Fingerprint all that determines the scores of the reconstructions with the key ``attack``.

    ``metrics`` are the further metrics of the study, by spec; the code of each counts.
    """
    modules = sorted({module_of("metric", Spec.parse(spec).name) for spec in metrics})
    inputs = {"attack": attack, "metrics": list(metrics)}
    return _key(inputs, code_version((*SCORING_CODE, *modules)))


def same_inputs(key: str, other: str) -> bool:
    """Return whether two keys are of the same inputs, be it of other code."""
    return key.partition("-")[0] == other.partition("-")[0]


def _key(inputs: Mapping[str, Any], code: str) -> str:
    return f"{fingerprint(inputs)}-{code}"
