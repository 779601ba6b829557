"""Compute what a client sends from its private images."""

import torch
from torch import Tensor

from fl_sim.data import private_batch
from fl_sim.engines.process import set_up_process
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import LocalReply, flat_model, local_reply, one_hot

set_up_process()  # clients run in parallel instead


def compute_reply(
    trial: Trial,
    partition: int,
    server_round: int,
    weights: Tensor,
    statistics: Tensor | None = None,
) -> LocalReply:
    """Return what a client sends of one round, which the arguments determine.

    ``statistics`` are the running statistics of BatchNorm layers that it was sent, if any.
    """
    images, labels = private_batch(trial.federation, trial.work, partition, server_round)
    spec, work = trial.model_spec, trial.work.in_round(server_round)
    targets = one_hot(labels, spec.classes)
    order = trial.order(partition, server_round)
    sent = (weights, torch.zeros(0) if statistics is None else statistics)
    return local_reply(flat_model(spec), work, *sent, images, targets, order=order, eager=True)
