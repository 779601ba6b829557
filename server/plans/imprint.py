"""ACTIVE threat model: a malicious server that plants an imprint layer to read clients' images."""

from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from torch import Tensor, nn

from fl_sim.exchange.messages import arrays_of
from fl_sim.models import IMPRINT_BINS, Imprinted, ModelSpec
from fl_sim.study.settings import TrainingSettings
from fl_sim.study.trials import Trial
from fl_sim.updates.local_update import flat_model
from server.strategies.averaging import QuantizedAveraging


def has_imprint(model: ModelSpec) -> bool:
    """Tell whether a model has the layer that `plant_imprint` fills."""
    return isinstance(flat_model(model).module, Imprinted)


def plant_imprint(model: ModelSpec, weights: Tensor, public: Tensor) -> Tensor:
    """Return weights whose imprint layer sorts images by brightness.

    Every unit measures the mean brightness of an image; their biases are quantiles of that
    brightness over public images, so that unit k passes what is brighter than the k-th quantile
    ("Robbing the Fed", Fowl et al. 2022, arXiv 2110.13057). Units are divided by their
    number, so that the layer brightens a picture by less than its own brightness.

    Parameters
    ----------
    model : ModelSpec
        A model with an imprint layer.
    weights : Tensor
        ``(size,)``; the other layers are left as they are.
    public : Tensor
        ``(N, C, H, W)`` public images; never a client's.

    Returns
    -------
    Tensor
        ``(size,)`` new weights.
    """
    layout = flat_model(model).layout
    tensors = layout.unflatten(weights.clone())
    pixels = public[0].numel()
    levels = torch.arange(IMPRINT_BINS) / IMPRINT_BINS
    thresholds = public.flatten(1).mean(dim=1).quantile(levels)
    thresholds[0] = -1 / pixels  # below black: the first unit sees every image
    nn.init.constant_(tensors["imprint.weight"], 1 / (pixels * IMPRINT_BINS))
    tensors["imprint.bias"] = -thresholds / IMPRINT_BINS
    return layout.flatten(tensors)


class ImprintingServer(QuantizedAveraging):
    """ACTIVE threat model: averaging by a server that plants its imprint layer in every round.

    It does not follow the protocol: what it sends is not what training led to. Everything else,
    the quantizer and its payloads included, is as the clients expect.

    Parameters
    ----------
    trial, settings, nodes, weights
        As of `QuantizedAveraging`; the model has an imprint layer, planted in ``weights`` at once.
    """

    def __init__(
        self, trial: Trial, settings: TrainingSettings, nodes: Mapping[int, int], weights: Tensor
    ) -> None:
        super().__init__(trial, settings, nodes, weights)
        self._plant()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Average and step as agreed, then undo the step of the imprint layer."""
        _, metrics = super().aggregate_train(server_round, replies)
        self._plant()
        return arrays_of(self.weights.detach().clone()), metrics

    def _plant(self) -> None:
        public = self.trial.federation.splits.public.pixels()
        self.weights.copy_(plant_imprint(self.trial.model_spec, self.weights, public))
