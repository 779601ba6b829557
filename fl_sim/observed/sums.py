"""What secure aggregation shows of a round: the sum of its clients' updates, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.local_update import Update


def sum_of(observations: Sequence[Observation], weights: Tensor, images: int) -> Observation:
    """Return what a server knows of clients if it learns the sum of their decoded updates alone.

    Where all clients were sent the same weights and take one step, the sum is the update of one
    client with all their images: ``images`` is their number. Where a plan silenced all clients but
    one, ``images`` is the number of its images.

    Parameters
    ----------
    observations : sequence of Observation
        Of one round, of clients with equally many images.
    weights : Tensor
        ``(size,)`` weights at which attacks may evaluate the model.
    images : int
        Images that the sum is taken to be the update of.

    Returns
    -------
    Observation
        Unquantized; its partition is that of the first client.

    Raises
    ------
    ValueError
        If clients take several steps: their sum is not the update of one client.

    Examples
    --------
    >>> import torch
    >>> from fl_sim.observed.sums import sum_of
    >>> from fl_sim.testing import observe
    >>> seen = observe(torch.rand(2, 1, 8, 8), torch.tensor([3, 5]), "sign")
    >>> sum_of(seen, seen[0].weights, images=2).work.batch_size
    2
    """
    first = observations[0]
    first.work.of_clients(2)  # refuses several steps
    layout = first.payload.layout
    total = torch.zeros(layout.size)
    for one in observations:
        total += parse_quantizer(one.payload.spec).decode(one.payload).vector
    mean = Update(total * (first.work.images / images), layout)
    payload = parse_quantizer("none").encode(mean, torch.Generator())
    work = replace(first.work, batch_size=images)
    return replace(first, weights=weights, work=work, payload=payload, statistics=None)
