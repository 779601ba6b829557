"""The updates that guessed images would have caused, for attacks and for the gates of results."""

from torch import Tensor
from torch.func import vmap

from fl_sim.updates.local_update import FlatModel, LocalWork, local_update


def candidate_updates(
    model: FlatModel, work: LocalWork, weights: Tensor, images: Tensor, targets: Tensor
) -> Tensor:
    """Return the update that each candidate batch would have caused; differentiable.

    Parameters
    ----------
    model : FlatModel
        The clients' model.
    work : LocalWork
        What the clients do in a round.
    weights : Tensor
        ``(size,)`` weights the clients were sent, or ``(b, size)`` for gradients at weights of
        their own; see `weights_may_differ`.
    images : Tensor
        ``(b, n, C, H, W)``.
    targets : Tensor
        ``(b, n, classes)`` target probabilities.

    Returns
    -------
    Tensor
        ``(b, size)``.
    """
    if work.kind == "gradient":
        return model.gradients(weights, images, targets)

    def update(images: Tensor, targets: Tensor) -> Tensor:
        return local_update(model, work, weights, images, targets)

    return vmap(update)(images, targets)
