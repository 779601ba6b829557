"""The replies that guessed images would have caused, for attacks and for the gates of results."""

from torch import Tensor
from torch.func import vmap

from fl_sim.updates.local_update import (
    FlatModel,
    LocalReply,
    LocalWork,
    clipped,
    local_reply,
    local_update,
)


def candidate_updates(
    model: FlatModel,
    work: LocalWork,
    weights: Tensor,
    images: Tensor,
    targets: Tensor,
    orders: Tensor | None = None,
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
    orders : Tensor, optional
        ``(b, epochs, n)`` order of the images in each epoch, as of `local_update`; an attacker does
        not know it.

    Returns
    -------
    Tensor
        ``(b, size)``.
    """
    if work.kind == "gradient" and work.example_clip:
        count, size = targets.shape[:2]
        own = weights if weights.dim() == 1 else weights.repeat_interleave(size, dim=0)
        alone = (work.inputs(images).flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None])
        each = model.gradients(own, *alone).view(count, size, -1)
        return clipped(each, work.example_clip).mean(dim=1)
    if work.kind == "gradient":
        return model.gradients(weights, work.inputs(images), targets)

    def update(images: Tensor, targets: Tensor, order: Tensor | None = None) -> Tensor:
        return local_update(model, work, weights, images, targets, order=order)

    known = (images, targets) if orders is None else (images, targets, orders)
    updates: Tensor = vmap(update)(*known)
    return updates


def candidate_replies(
    model: FlatModel,
    work: LocalWork,
    weights: Tensor,
    statistics: Tensor,
    images: Tensor,
    targets: Tensor,
    orders: Tensor | None = None,
) -> LocalReply:
    """Return all that each candidate batch would have made a client send; differentiable.

    Parameters
    ----------
    statistics : Tensor
        ``(model.statistics.size,)`` running statistics the clients were sent.
    model, work, weights, images, targets, orders
        As of `candidate_updates`; the weights are shared if there are statistics.

    Returns
    -------
    LocalReply
        ``(b, size)`` and ``(b, statistics.size)``. The statistics of one batch do not depend on
        the other batches.
    """
    if not model.statistics.size:
        updates = candidate_updates(model, work, weights, images, targets, orders)
        return LocalReply(updates, images.new_zeros(len(images), 0))

    def reply(
        images: Tensor, targets: Tensor, order: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        update, change = local_reply(model, work, weights, statistics, images, targets, order=order)
        return update, change

    known = (images, targets) if orders is None else (images, targets, orders)
    return LocalReply(*vmap(reply)(*known))
