"""What noise guarantees: epsilon of differential privacy over the rounds of a training."""

from importlib import import_module


def gaussian_epsilon(noise: float, rounds: int, sample_rate: float, delta: float) -> float:
    """Return epsilon of the (epsilon, delta)-privacy of one client's whole contribution.

    The client clips each update to some L2 norm and adds Gaussian noise of ``noise`` times that
    norm (``dp_gaussian``). Neighbouring runs differ in whether the client's clipped updates are
    there or zero. The Renyi accountant is Opacus's (Mironov et al. 2019, arXiv 1908.10530).

    Parameters
    ----------
    noise : float
        The noise multiplier: standard deviation of the noise over the clipping norm.
    rounds : int
        Rounds of training.
    sample_rate : float
        Probability with which the client takes part in a round, unseen by the adversary. A server
        sees who takes part, so subsampling gives nothing towards it: pass 1.
    delta : float
        The delta to account for.

    Raises
    ------
    ImportError
        If the optional package ``opacus`` is not installed.
    """
    try:
        accountants = import_module("opacus.accountants")
    except ImportError as error:
        raise ImportError(
            "The epsilon of dp_gaussian needs the package opacus; install it with pip."
        ) from error
    accountant = accountants.RDPAccountant()
    accountant.history = [(noise, sample_rate, rounds)]
    return float(accountant.get_epsilon(delta))
