"""Compute the update of a client from its private images."""

import torch
from torch import Tensor

from fl_sim.data import private_batch
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import flat_model, local_update, one_hot

torch.set_num_threads(1)  # tensors are small; clients run in parallel instead


def compute_update(trial: Trial, partition: int, server_round: int, weights: Tensor) -> Tensor:
    """Return a client's ``(size,)`` update of one round, which the arguments determine."""
    images, labels = private_batch(trial.federation, trial.work, partition, server_round)
    spec, work = trial.model_spec, trial.work.in_round(server_round)
    targets = one_hot(labels, spec.classes)
    order = trial.order(partition, server_round)
    return local_update(flat_model(spec), work, weights, images, targets, order=order, eager=True)
