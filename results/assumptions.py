"""What an audit assumed of the clients, and what makes its figures lower bounds."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_sim.models import build_model
from fl_sim.observed.observations import Observation
from fl_sim.quantizers import parse_quantizer
from fl_sim.updates.differentiable import dropout_layers
from fl_sim.updates.local_work import LocalWork


def assumptions(observations: Sequence[Observation]) -> list[str]:
    """Return a sentence for each thing that attacks took for granted, for all observations."""
    found: list[str] = []
    for one in _each_kind(observations):
        found += _of_work(one.work)
        found += _of_batch_norm(build_model(one.model), one)
    return list(dict.fromkeys(found))


def lower_bounds(observations: Sequence[Observation]) -> list[str]:
    """Return a sentence for each thing that attacks did not know: more may be possible."""
    found: list[str] = []
    for one in _each_kind(observations):
        work = one.work
        if work.reorders:
            found.append("Clients shuffle in every epoch; attacks do not know the order.")
        if work.augmented and work.epochs > 1:
            found.append(
                "Attacks take every epoch to use the same images, but clients augment them."
            )
        if dropped := dropout_layers(build_model(one.model)):
            found.append(f"Clients train with dropout ({', '.join(dropped)}), attacks run without.")
        if parse_quantizer(one.payload.spec).carries_residual:
            found.append("Payloads hold a residual of earlier rounds, which attacks do not know.")
    return list(dict.fromkeys(found))


def _each_kind(observations: Sequence[Observation]) -> list[Observation]:
    """Return one observation of each kind of work; clients of an app have the same model."""
    kinds = {(one.work, one.payload.spec): one for one in observations}
    return list(kinds.values())


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def _of_work(work: LocalWork) -> list[str]:
    found = []
    if work.kind == "gradient":
        found.append(f"A client sends the gradient of {_count(work.images, 'image')}.")
    else:
        recipe = f"step size {work.learning_rate:g}"
        recipe += f", {work.schedule}" if work.schedule != "constant" else ""
        recipe += f", momentum {work.momentum:g}" if work.momentum else ""
        recipe += f", weight decay {work.weight_decay:g}" if work.weight_decay else ""
        found.append(
            f"A client trains with SGD: {_count(work.local_steps, 'step')} over "
            f"{_count(work.local_batches, 'batch', 'batches')} of "
            f"{_count(work.batch_size, 'image')} ({recipe})."
        )
    if work.mean:
        numbers = (", ".join(f"{one:g}" for one in values) for values in (work.mean, work.std))
        found.append("Pixels are normalised by the mean {} and the deviation {}.".format(*numbers))
    if work.augmented:
        found.append("Clients augment their images; what is sought is the image after that.")
    return found


def _of_batch_norm(model: nn.Module, one: Observation) -> list[str]:
    if not any(isinstance(layer, _BatchNorm) for layer in model.modules()):
        return []
    if one.statistics is None:
        return ["BatchNorm layers are in evaluation mode, or keep no running statistics."]
    return ["BatchNorm layers are in training mode; their running statistics are read."]
