"""Metrics of other modules: found by their spec, computed, and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_sim.registry import PartError, resolve
from fl_sim.storage.files import folder_name
from fl_sim.study.settings import SettingsError

Array = NDArray[np.float64]

_TAKEN = (
    *("quantizer", "seed", "round", "partition", "attack", "image", "guess", "batch", "baseline"),
    *("mse", "psnr", "ssim", "correlation", "lpips", "rank", "identified", "failed", "recovered"),
    *("label", "true_label", "label_hit", "labels_recovered", "status", "evaluations", "server"),
    *("evidence", "evidence_at_truth", "evidence_at_grey", "evidence_blocks"),
    *("mse_best_known", "psnr_best_known"),
    *("masked", "unexplained", "inconsistency", "strongest", "naive-mse"),
    *("loss_at_guess", "loss_at_truth", "loss_at_grey", "update_rmse"),
    *("identified_chance", "label_chance", "cohort"),
)
"""Columns of ``scores.csv``; no further metric may have such a name."""


@dataclass(frozen=True)
class FurtherMetric:
    """A metric that a study adds to the built-in ones.

    Attributes
    ----------
    spec : str
        Its name and parameters, as in the setting ``metrics``.
    score : callable
        Takes ``(n, C, H, W)`` float64 arrays in [0, 1], images and truth, paired by position, and
        returns ``(n,)`` finite numbers.
    higher_is_better : bool
        Whether a higher score is a better reconstruction, as for PSNR.
    """

    spec: str
    score: Callable[[Array, Array], object]
    higher_is_better: bool

    @property
    def column(self) -> str:
        """Its column in ``scores.csv``: the spec without special characters."""
        return folder_name(self.spec) if ":" in self.spec else self.spec

    def __call__(self, images: Array, truth: Array) -> Array:
        """Return the score of each pair.

        Raises
        ------
        PartError
            If the metric raises, or does not return one finite number for each pair.
        """
        try:
            scores = np.asarray(self.score(images.copy(), truth.copy()), dtype=np.float64)
        except Exception as error:
            raise self._failure(f"raised {type(error).__name__}: {error}") from error
        if scores.shape != (len(images),):
            raise self._failure(f"returned shape {scores.shape} for {len(images)} images")
        if not np.isfinite(scores).all():
            raise self._failure(f"returned {scores[~np.isfinite(scores)][0]}")
        return scores

    def _failure(self, what: str) -> PartError:
        needed = "one finite number for each pair of images is needed"
        return PartError(f"metrics = {self.spec!r}: the metric {what}; {needed}")


def further_metrics(specs: Sequence[str]) -> tuple[FurtherMetric, ...]:
    """Return the metrics of a study.

    Raises
    ------
    SettingsError
        If a metric does not say which direction is better, or its column exists already.
    """
    found = []
    for spec in specs:
        part = resolve("metric", spec)
        better = getattr(getattr(part, "func", part), "higher_is_better", None)
        if not isinstance(better, bool):
            raise SettingsError(
                "metrics", spec, "must have an attribute higher_is_better, True or False"
            )
        found.append(FurtherMetric(spec, part, better))
        if found[-1].column in _TAKEN:
            raise SettingsError("metrics", spec, "is a column of every study; choose another name")
    return tuple(found)
