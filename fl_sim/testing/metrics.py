"""What every metric promises."""

import numpy as np

from fl_sim.metrics import further_metrics
from fl_sim.registry import PartError
from fl_sim.study.settings import SettingsError
from fl_sim.testing.contract import ContractError, make_twice, require


def check_metric(spec: str) -> None:
    """Check that a metric keeps what every metric promises.

    It returns one finite number for each pair of images, of any number and shape, that depends on
    this pair alone. No image is a better reconstruction than the true one, in the direction that
    the metric says.

    Parameters
    ----------
    spec : str
        Spec of a metric that is registered.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such metric.

    Examples
    --------
    >>> from fl_sim import register
    >>> from fl_sim.testing import check_metric
    >>> @register("metric", "worst_pixel")
    ... def worst_pixel(images, truth):
    ...     return abs(images - truth).max((1, 2, 3))
    >>> worst_pixel.higher_is_better = False
    >>> check_metric("worst_pixel")
    """
    try:
        (metric,) = further_metrics([spec])
        rng = np.random.default_rng(0)
        for shape in ((4, 1, 8, 8), (2, 3, 16, 12)):
            truth, images = rng.random(shape), rng.random(shape)
            images[0] = 0.5  # an attack failed
            images[1] = truth[1]
            scores, again = make_twice(f"{spec}: scoring", lambda: metric(images, truth))  # noqa: B023
            require(
                np.array_equal(scores, again), f"{spec}: the same images are scored differently"
            )
            alone = [metric(*pair) for pair in zip(images[:, None], truth[:, None], strict=True)]
            require(
                np.allclose(scores, np.concatenate(alone), rtol=1e-6, atol=1e-12),
                f"{spec}: the score of a pair depends on the other pairs",
            )
            better = scores - scores[1] if metric.higher_is_better else scores[1] - scores
            require(
                better.max() <= 1e-9,
                f"{spec}: another image scores better than the true one; "
                f"is higher_is_better = {metric.higher_is_better} right?",
            )
    except (SettingsError, PartError) as error:
        raise ContractError(str(error)) from error
