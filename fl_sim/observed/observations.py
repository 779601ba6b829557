"""What a server keeps of one client in one round, and its store on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_sim.coding.cell import Cell
from fl_sim.coding.payload import Payload, PayloadError
from fl_sim.exchange.weight_records import Changes
from fl_sim.models import ModelSpec, build_model, check_spec, partly_trained
from fl_sim.observed.evidence import HeldBack
from fl_sim.quantizers import parse_quantizer
from fl_sim.storage.files import StoreError, check_format, read_tensors, write_tensors
from fl_sim.updates.batch_norm import MEAN, VARIANCE
from fl_sim.updates.local_update import (
    Layout,
    LocalWork,
    Segment,
    flat_model,
    layout_of_model,
    statistics_of_model,
)

FORMAT = 1  # version of a round's file; it rises when older code could not read it
_SENT_STATISTICS, _STATISTICS = "statistics", "statistics."
_OWN = "weights."  # and the partition: the weights of a client that was given others
_UNREADABLE = (KeyError, TypeError, ValueError, PayloadError)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a server knows of the running statistics of one client's BatchNorm layers.

    Attributes
    ----------
    sent : Tensor
        ``(statistics.size,)`` those the client was given; see `FlatModel.statistics`.
    payload : Payload
        Their change by the client, *old minus new*, as received.
    """

    sent: Tensor
    payload: Payload

    @property
    def cell(self) -> Cell:
        """What the payload tells of the change."""
        return parse_quantizer(self.payload.spec).cell(self.payload)


@dataclass(frozen=True, eq=False)
class Observation:
    """All an honest-but-curious server knows of one client's update; never data, never labels.

    Attributes
    ----------
    trial : str
        Name of the trial (one quantizer x one seed), also the folder it is stored in.
    round : int
        1-based training round.
    partition : int
        Which client.
    model : ModelSpec
        The architecture, public.
    work : LocalWork
        Update kind, batch size, learning rate, local steps: public.
    weights : Tensor
        ``(size,)`` float32 weights the client was given; one tensor shared by a round.
    payload : Payload
        The bytes received; ``payload.spec`` names the quantizer. Where elements are held back, it
        has no body: attacks read `cell`.
    server : str
        Spec of the server's plan: what it did to model and weights.
    held_back : HeldBack or None
        Which elements of the payload are hidden, because attacks will be judged by them.
    statistics : Statistics or None
        Of BatchNorm layers in training mode, if the model has such.
    cohort : tuple of int
        The clients whose sum alone was seen, ``partition`` the first of them; empty for one client.
    """

    trial: str
    round: int
    partition: int
    model: ModelSpec
    work: LocalWork
    weights: Tensor
    payload: Payload
    server: str = "curious"
    held_back: HeldBack | None = None
    statistics: Statistics | None = None
    cohort: tuple[int, ...] = ()
    _whole: Payload | None = field(default=None, repr=False)  # where elements are held back

    @property
    def clients(self) -> tuple[int, ...]:
        """The clients behind the observation."""
        return self.cohort or (self.partition,)

    @property
    def cell(self) -> Cell:
        """What the payload tells of the update, less what is held back."""
        payload = self._whole or self.payload
        cell = parse_quantizer(payload.spec).cell(payload)
        if self.held_back is None:
            return cell
        return cell.without(self.held_back.elements(payload.layout, cell.sizes))

    def hold_back(self, held_back: HeldBack) -> "Observation":
        """Return what an attack is shown that will be judged by the elements held back."""
        sealed = replace(self.payload, body=b"")
        whole = self._whole or self.payload
        return replace(self, payload=sealed, held_back=held_back, _whole=whole)


def round_path(root: Path, trial: str, server_round: int) -> Path:
    """Return the file of one round of one trial below ``root``."""
    return root / trial / f"round-{server_round:05d}.safetensors"


def save_round(
    root: Path,
    trial: str,
    server_round: int,
    model: ModelSpec | None,
    work: LocalWork | None,
    weights: Tensor,
    payloads: Mapping[int, Payload],
    tensors: Layout | None = None,
    changes: Mapping[int, Changes] | None = None,
    server: str = "curious",
    own_weights: Mapping[int, Tensor] | None = None,
    statistics: Mapping[int, Payload] | None = None,
    sent_statistics: Tensor | None = None,
    cohorts: Mapping[int, tuple[int, ...]] | None = None,
) -> None:
    """Write what was seen of one round of one trial to one file, atomically.

    Parameters
    ----------
    model, work
        Public facts of all clients; what is None must be given to `load_observations`.
    weights : Tensor
        ``(size,)`` float32 weights all clients were given.
    payloads : Mapping[int, Payload]
        By partition.
    tensors : Layout, optional
        Of ``weights``, where they are not those of a model of ours.
    changes : Mapping[int, Changes], optional
        Which of ``tensors`` each client changed.
    server : str
        Spec of the server's plan.
    own_weights : Mapping[int, Tensor], optional
        The weights of those partitions that were given others.
    statistics : Mapping[int, Payload], optional
        Change of the running statistics of BatchNorm layers, by partition.
    sent_statistics : Tensor, optional
        Those that all clients were sent, where they are not among ``weights``.
    cohorts : Mapping[int, tuple of int], optional
        The clients of each payload that is a sum.
    """
    stored = {f"payload.{partition}": _as_bytes(p) for partition, p in payloads.items()}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "trial": trial,
        "round": server_round,
        "model": model and asdict(model),
        "work": work and work.in_round(server_round).facts,
        "server": server,
    }
    if cohorts:
        facts["cohorts"] = {str(partition): clients for partition, clients in cohorts.items()}
    own = {f"{_OWN}{partition}": weights for partition, weights in (own_weights or {}).items()}
    if tensors is not None:
        facts["tensors"] = tensors.segments
        facts["changes"] = {
            str(partition): {
                "trained": [name for name, _ in one.quantized.segments],
                "tied": list(one.same),
                "exact": one.exact,
            }
            for partition, one in (changes or {}).items()
        }
    sent = {} if sent_statistics is None else {_SENT_STATISTICS: sent_statistics}
    shown = {
        f"{_STATISTICS}{partition}": _as_bytes(p) for partition, p in (statistics or {}).items()
    }
    write_tensors(
        round_path(root, trial, server_round),
        {"weights": weights, **sent, **own, **stored, **shown},
        facts,
    )


def save_observations(root: Path, observations: Sequence[Observation]) -> None:
    """Write the observations of one round of one trial to one file, atomically."""
    first = observations[0]
    payloads = {o.partition: o.payload for o in observations}
    facts = (first.trial, first.round, first.model, first.work, first.weights)
    own = {o.partition: o.weights for o in observations if o.weights is not first.weights}
    assert not any(o.cohort for o in observations)
    save_round(
        root,
        *facts,
        payloads,
        server=first.server,
        own_weights=own,
        statistics={o.partition: o.statistics.payload for o in observations if o.statistics},
        sent_statistics=first.statistics.sent if first.statistics else None,
    )


def load_observations(
    path: Path,
    model: ModelSpec | None = None,
    work: LocalWork | None = None,
    *,
    unreadable: list[str] | None = None,
) -> list[Observation]:
    """Read the observations of one round, sorted by partition.

    Parameters
    ----------
    path : Path
        The file.
    model, work
        Where the file does not say them; they win over what it says.
    unreadable : list of str, optional
        Where given, a client of an app of whom something cannot be read is named in it, with the
        reason, and left out.

    Raises
    ------
    StoreError
        If the file is truncated, altered, of another format version, or does not hold what
        `save_observations` wrote.
    """
    tensors, facts = read_tensors(path)
    check_format(path, facts, FORMAT)
    try:
        spec = model or _model(facts["model"])
        if work is not None:
            _check_planted_inputs(facts, work)
        done = work or LocalWork(**facts["work"])
        done = done.in_round(_where(facts)[1])
        if "tensors" in facts:
            app = _AppRound(tensors, facts, spec, done)
            return app.observations(unreadable)
        layout = layout_of_model(spec) if model is None else flat_model(model).layout
        weights, own_weights = _take_weights(tensors)
        statistics = _take_statistics(tensors, statistics_of_model(spec))
        for given in (weights, *own_weights.values()):
            if given.shape != (layout.size,) or given.dtype != torch.float32:
                raise ValueError(f"weights of shape {tuple(given.shape)} are not the model's")
        payloads = {
            int(name.removeprefix("payload.")): Payload.from_bytes(_bytes_of(raw), layout)
            for name, raw in tensors.items()
        }
        trial, server_round = _where(facts)
        cohorts = {int(first): _clients(one) for first, one in facts.get("cohorts", {}).items()}
        return [
            Observation(
                *(trial, server_round, partition, spec),
                work=done.of_clients(len(cohorts.get(partition, (partition,)))),
                weights=own_weights.get(partition, weights),
                payload=payloads[partition],
                server=_server(facts),
                statistics=statistics[partition] if statistics else None,
                cohort=cohorts.get(partition, ()),
            )
            for partition in sorted(payloads)
        ]
    except _UNREADABLE as error:
        raise StoreError(f"{path.name} in {path.parent} is not an observation: {error}") from error


class _AppRound:
    """A round of an app, each client of which may have trained other parts of the model."""

    def __init__(
        self, tensors: dict[str, Tensor], facts: dict[str, Any], model: ModelSpec, work: LocalWork
    ) -> None:
        whole = Layout(tuple(Segment(name, tuple(shape)) for name, shape in facts["tensors"]))
        built = build_model(model)
        _compare(whole, built)
        self.batch_norms = {
            f"{layer}.{name}": layer
            for layer, module in built.named_modules()
            if isinstance(module, _BatchNorm)
            for name, _ in module.named_buffers(recurse=False)
        }
        weights, own_weights = _take_weights(tensors)
        told = [name for name in tensors if name.startswith(_STATISTICS)]
        self.statistics = {name.removeprefix(_STATISTICS): tensors.pop(name) for name in told}
        self.values = whole.unflatten(weights)
        self.own = {partition: whole.unflatten(own) for partition, own in own_weights.items()}
        self.payloads, self.changes = tensors, facts["changes"]
        self.trial, self.round = _where(facts)
        self.model, self.work, self.server = model, work, _server(facts)
        self.given: dict[ModelSpec, Tensor] = {}

    def observations(self, unreadable: list[str] | None) -> list[Observation]:
        """Return what can be read, and name what cannot; raise where nobody asks for its name."""
        found = []
        for name in self.payloads:
            try:
                found.append(self._observation(name))
            except _UNREADABLE as error:
                if unreadable is None:
                    raise
                client = name.removeprefix("payload.")
                unreadable.append(f"round {self.round}, client {client}: {error}")
        return sorted(found, key=lambda one: one.partition)

    def _observation(self, name: str) -> Observation:
        partition = int(name.removeprefix("payload."))
        changes = self.changes[str(partition)]
        layers = self._moved_layers(changes)
        trained = set(changes["trained"])
        moved = trained | set(changes["tied"])
        moved |= {f"{layer}.{kind}" for layer in layers for kind in (MEAN, VARIANCE)}
        moved |= {name for name in self.batch_norms if not name.endswith((MEAN, VARIANCE))}
        values = self.own.get(partition, self.values)
        fixed = {n: value for n, value in values.items() if n not in moved}
        own = partly_trained(self.model, fixed, trained)
        layout = flat_model(own).layout
        strange = trained - {name for name, _ in layout.segments}
        if strange:
            raise ValueError(f"clients trained {min(strange)!r}, which is no parameter")
        payload = Payload.from_bytes(_bytes_of(self.payloads[name]), layout)
        parse_quantizer(payload.spec).cell(payload)  # what attacks read of it
        if partition in self.own:
            weights = layout.flatten(values)
        else:
            weights = self.given.setdefault(own, layout.flatten(values))
        statistics = self._statistics(str(partition), flat_model(own).statistics, values)
        facts = (self.trial, self.round, partition, own, self.work, weights)
        return Observation(*facts, payload, self.server, statistics=statistics)

    def _moved_layers(self, changes: dict[str, Any]) -> set[str]:
        """Return the BatchNorm layers that a client trained; refuse other buffers that changed."""
        buffers = [name for name in changes["exact"] if name not in self.batch_norms]
        if buffers:
            raise ValueError(f"training changes {buffers[0]!r}, which is no parameter")
        names = [n for n in (*changes["exact"], *changes["tied"]) if n.endswith((MEAN, VARIANCE))]
        return {self.batch_norms[name] for name in names if name in self.batch_norms}

    def _statistics(
        self, client: str, layout: Layout, values: dict[str, Tensor]
    ) -> Statistics | None:
        """Return what a client sent of the running statistics, and those it was sent."""
        if not layout.size:
            return None
        if client not in self.statistics:
            raise ValueError("its running statistics were not kept; observe the training again")
        payload = Payload.from_bytes(_bytes_of(self.statistics[client]), layout)
        return Statistics(layout.flatten(values), payload)


def _take_weights(tensors: dict[str, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """Take out the weights of a round, and those of clients that were given others."""
    names = [name for name in tensors if name.startswith(_OWN)]
    own = {int(name.removeprefix(_OWN)): tensors.pop(name) for name in names}
    return tensors.pop("weights"), own


def _take_statistics(tensors: dict[str, Tensor], layout: Layout) -> dict[int, Statistics]:
    """Take out the running statistics of BatchNorm layers, by partition, if there are any."""
    names = [name for name in tensors if name.startswith(_STATISTICS)]
    raw = {int(name.removeprefix(_STATISTICS)): tensors.pop(name) for name in names}
    if not layout.size:
        return {}
    sent = tensors.pop(_SENT_STATISTICS)
    if sent.shape != (layout.size,) or sent.dtype != torch.float32:
        raise ValueError(f"statistics of shape {tuple(sent.shape)} are not the model's")
    payloads = {k: Payload.from_bytes(_bytes_of(one), layout) for k, one in raw.items()}
    return {partition: Statistics(sent, payload) for partition, payload in payloads.items()}


def _compare(sent: Layout, model: nn.Module) -> None:
    """Raise `ValueError` that names the first tensor that is not the model's."""
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    floats = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    names = [name for name, _ in sent.segments if name in floats or name not in state]
    for name, own in zip_longest(names, floats):
        if name != own:
            raise ValueError(f"clients were sent {name!r} where the model has {own!r}")
    for name, shape in sent.segments:
        if state[name] != shape:
            raise ValueError(f"clients were sent {name!r} as {shape}; the model's is {state[name]}")


def _model(facts: dict[str, Any]) -> ModelSpec:
    spec = ModelSpec(facts["name"], tuple(facts["shape"]), facts["classes"])
    check_spec(spec)
    return spec


def _where(facts: dict[str, Any]) -> tuple[str, int]:
    """Return trial and round."""
    trial, server_round = facts["trial"], facts["round"]
    if not isinstance(trial, str) or type(server_round) is not int:
        raise TypeError(f"trial {trial!r} and round {server_round!r}")
    return trial, server_round


def _clients(cohort: Any) -> tuple[int, ...]:
    if not isinstance(cohort, list) or not all(type(one) is int and one >= 0 for one in cohort):
        raise TypeError(f"cohort {cohort!r}")
    if sorted(set(cohort)) != cohort or len(cohort) < 2:
        raise ValueError(f"cohort {cohort!r}")
    return tuple(cohort)


def _check_planted_inputs(facts: dict[str, Any], work: LocalWork) -> None:
    """Refuse a server that planted for other inputs than those of ``work``: it reads nothing."""
    planned = LocalWork(**(facts["work"] or {}))
    if _server(facts) != "curious" and (planned.mean, planned.std) != (work.mean, work.std):
        raise ValueError(
            f"the server planted for pixels with the mean {planned.mean} and the deviation "
            f"{planned.std}, clients work with {work.mean} and {work.std}; tell Malicious their "
            "work"
        )


def _server(facts: dict[str, Any]) -> str:
    if not isinstance(facts["server"], str):
        raise TypeError(f"server {facts['server']!r}")
    return facts["server"]


def _bytes_of(raw: Tensor) -> bytes:
    if raw.dtype != torch.uint8 or raw.dim() != 1:
        raise TypeError(f"a payload as {raw.dtype} of {raw.dim()} dimensions")
    return raw.numpy().tobytes()


def _as_bytes(payload: Payload) -> Tensor:
    return torch.frombuffer(bytearray(payload.to_bytes()), dtype=torch.uint8)
