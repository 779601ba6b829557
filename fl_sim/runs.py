"""The folder of a run: where each output lies, and whether it still stands."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_sim.files import write_text
from fl_sim.settings import Settings, SettingsError, dump_settings, load_settings
from fl_sim.trials import Trial

# Raise when a change of code changes what training or attacks produce from the same settings.
RESULTS_VERSION = 2


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

    def trial_file(self, trial: Trial) -> Path:
        """Return the history of one finished trial; it is written last, so it marks the end."""
        return self.root / "training" / f"{trial.name}.json"

    def create(self, settings: Settings) -> None:
        """Make the folder and write the resolved settings; raise as `write_settings` does."""
        self.write_settings(dump_settings(settings))

    def write_settings(self, text: str) -> None:
        """Make the folder and write ``settings.toml``.

        Raises
        ------
        SettingsError
            If the path is a file, or cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_text(self.settings_file, text)
        except OSError as error:
            reason = f"cannot be written ({error.strerror})"
            if self.root.is_file():
                reason = "is a file; a folder is needed"
            raise SettingsError("out", str(self.root), reason) from error

    def settings(self) -> Settings:
        """Return the settings this run was made with."""
        self.require()
        return load_settings(self.settings_file, {})

    def require(self) -> None:
        """Raise `SettingsError` if this is not the folder of a run or study."""
        if not self.settings_file.is_file():
            raise SettingsError("run", str(self.root), "is not the folder of a run")


def training_key(trial: Trial, settings: Settings) -> str:
    """Fingerprint all that determines a trial's history and observations."""
    training = settings.training.model_dump(mode="json", exclude={"timeout"})
    return _fingerprint(
        {"trial": trial.to_json(), "training": training, "rounds": settings.observed_rounds}
    )


def attack_key(trial: Trial, settings: Settings, attack: str) -> str:
    """Fingerprint all that determines an attack's reconstructions of a trial."""
    return _fingerprint(
        {
            "training": training_key(trial, settings),
            "attack": settings.audit.spec(attack, trial.quantizer),
            "victims": settings.audit.victims,
        }
    )


def _fingerprint(tree: Mapping[str, Any]) -> str:
    text = json.dumps({"version": RESULTS_VERSION, **tree}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
