"""Flower's local differential privacy in the words of a study, so that the accountant knows it."""

from math import log, sqrt

from fl_sim.specs import positive, show


def local_dp_spec(clipping_norm: float, sensitivity: float, epsilon: float, delta: float) -> str:
    """Return the steps of a spec that do what Flower's ``LocalDpMod`` of these parameters does.

    The mod clips the change of the weights to ``clipping_norm``, then adds Gaussian noise of
    deviation ``sensitivity sqrt(2 ln(1.25 / delta)) / epsilon`` (Dwork and Roth 2014, theorem A.1,
    which holds for an epsilon of at most 1). What it guarantees is the guarantee of the spec: two
    clipped updates are up to twice the norm apart, and every round counts.

    Parameters
    ----------
    clipping_norm, sensitivity, epsilon, delta : float
        As of ``LocalDpMod``.

    Raises
    ------
    ValueError
        If a parameter is not positive, or delta is not below 1.25.

    Examples
    --------
    >>> from fl_sim.privacy.local_dp import local_dp_spec
    >>> local_dp_spec(clipping_norm=1, sensitivity=2, epsilon=1, delta=1e-5)
    'clip:norm=1+gaussian:sigma=9.689610525211'
    """
    for name, value in (
        ("clipping_norm", clipping_norm),
        ("sensitivity", sensitivity),
        ("epsilon", epsilon),
        ("delta", delta),
    ):
        positive(name, value)
    if delta >= 1.25:
        raise ValueError(f"delta={show(delta)} is not allowed; give a number below 1.25.")
    sigma = sensitivity * sqrt(2 * log(1.25 / delta)) / epsilon
    return f"clip:norm={show(clipping_norm)}+gaussian:sigma={show(float(f'{sigma:.13g}'))}"
