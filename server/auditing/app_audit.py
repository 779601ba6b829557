"""Audit any Flower app: attack the observations that `HonestButCurious` stored."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import nn

from attacker.choice import with_evidence
from attacker.presets import build_attack
from fl_sim.data.public_images import PublicImages
from fl_sim.models import ModelSpec, build_model, spec_of_app
from fl_sim.observed.observations import Observation, load_observations
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.storage.files import StoreError
from fl_sim.updates.differentiable import check_differentiable, dropout_layers
from fl_sim.updates.local_update import LocalWork


class Audit(list[Reconstruction]):
    """The reconstructions of an audit, by round and partition.

    Attributes
    ----------
    observations : list of Observation
        What was attacked; `results.print_audit` reports both.
    unreadable : list of str
        Observations that could not be read, each with the reason; a warning names them too.
    """

    def __init__(
        self,
        made: Iterable[Reconstruction],
        observations: list[Observation],
        unreadable: list[str],
    ) -> None:
        super().__init__(made)
        self.observations = observations
        self.unreadable = unreadable


def audit(
    store: Path | str,
    model: Callable[[], nn.Module],
    *,
    shape: tuple[int, int, int],
    classes: int,
    work: LocalWork | None = None,
    trial: str = "flower",
    attacks: Sequence[str] = ("suite",),
    public: PublicImages | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Audit:
    """Reconstruct the private images behind every payload in a store.

    Parameters
    ----------
    store : Path or str
        Folder that `HonestButCurious` wrote.
    model : callable
        Builds the model that was trained: a differentiable module that maps images
        ``(n, C, H, W)``, in [0, 1] or normalised as ``work`` says, to logits and is trained with
        cross-entropy. It is attacked without dropout; what clients did not train is taken as fixed.
        BatchNorm layers whose running statistics clients changed are in training mode; other
        buffers must not change.
    shape : tuple[int, int, int]
        Channels, height and width of an image.
    classes : int
        Number of labels.
    work : LocalWork, optional
        What a client does in a round; not needed if `HonestButCurious` was given it.
    trial : str
        Sub-folder of the training.
    attacks : sequence of str
        Names, optionally edited; see ``run_simulation.py attacks``.
    public : PublicImages, optional
        Public images like the private ones, for learned attacks.
    seed : int
        Of the attacks' random starts.
    device : str
        Where attacks run: ``cpu`` or ``cuda``.

    Returns
    -------
    Audit
        A list of the reconstructions of every attack that applies, by round and partition. Who
        audits an own app knows the truth: `results.print_audit` holds them against it.

    Raises
    ------
    StoreError
        If nothing was stored, or nothing of it can be read as of this model.
    NotDifferentiableError
        If a layer cannot be differentiated twice, by its name, before any attack starts.
    ValueError
        If there is no such attack, or none that applies.

    Examples
    --------
    >>> from server import audit
    >>> found = audit(  # doctest: +SKIP
    ...     "/absolute/folder/observations", Net, shape=(1, 8, 8), classes=10, work=work
    ... )
    """
    chosen = {name: with_evidence(build_attack(name), name) for name in attacks}
    unreadable: list[str] = []
    observations = _load(Path(store) / trial, spec_of_app(model, shape, classes), work, unreadable)
    if unreadable:
        warnings.warn(
            f"Left out {len(unreadable)} of what was observed, which cannot be read: "
            + "; ".join(unreadable),
            RuntimeWarning,
            stacklevel=2,
        )
    groups = _by_model(observations)
    for alike in groups:
        check_differentiable(alike[0].model)
    if dropped := dropout_layers(build_model(observations[0].model)):
        warnings.warn(
            f"Clients train with dropout ({', '.join(dropped)}) and are attacked without it: "
            "an attacker who guesses what was dropped may find more.",
            RuntimeWarning,
            stacklevel=2,
        )
    made: list[Reconstruction] = []
    for name, attack in chosen.items():
        fitting = [alike for alike in groups if attack.applies(alike)]
        if missed := len(observations) - sum(map(len, fitting)):
            warnings.warn(
                f"Attack {name!r} does not apply to {missed} of {len(observations)} updates: "
                "that it finds nothing there says nothing.",
                RuntimeWarning,
                stacklevel=2,
            )
        for alike in fitting:
            made += attack.reconstruct(alike, seed=seed, public=public, device=device)
    if not made:
        raise ValueError(
            f"No attack of {', '.join(chosen)} applies to what was observed, which says nothing "
            "of how private it is; choose another."
        )
    return Audit(made, observations, unreadable)


def _by_model(observations: Sequence[Observation]) -> list[list[Observation]]:
    """Group observations by which parts of the model were trained."""
    groups: dict[ModelSpec, list[Observation]] = {}
    for one in observations:
        groups.setdefault(one.model, []).append(one)
    return list(groups.values())


def _load(
    folder: Path, spec: ModelSpec, work: LocalWork | None, unreadable: list[str]
) -> list[Observation]:
    """Read every round; note what is ``unreadable``, and raise if nothing can be read."""
    paths = sorted(folder.glob("round-*.safetensors"))
    if not paths:
        raise StoreError(f"There are no observations in {folder}.")
    found: list[Observation] = []
    for path in paths:
        try:
            found += load_observations(path, spec, work, unreadable=unreadable)
        except StoreError as error:
            unreadable.append(str(error))
    if not found:
        raise StoreError(f"Nothing in {folder} can be attacked: {unreadable[0]}")
    return found
