"""Attacks of other modules: found by their spec, run, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import getdoc
from typing import Any

from attacker.attack import Progress
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction, check_types
from fl_sim.registry import PartError, find, make, module_of, names
from fl_sim.specs import Spec, default_parameters

_NEEDED = "one Reconstruction for each observation is needed, in their order"


@dataclass(frozen=True)
class PluginAttack:
    """An attack that another module registered; whatever it returns is checked.

    Attributes
    ----------
    spec : str
        Its name and parameters, as in the setting ``attacks``.
    part : object
        Has the methods ``applies`` and ``reconstruct``. It is given public images unless its
        attribute ``uses_public`` is False; where there are none, it is left out of a suite if its
        attribute ``needs_public`` is True.
    """

    spec: str
    part: Any

    @property
    def name(self) -> str:
        """The name it is registered under."""
        return Spec.parse(self.spec).name

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""
        return bool(getattr(self.part, "needs_public", False))

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference."""
        return bool(getattr(self.part, "uses_public", True))

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the attack can be run on these observations.

        Raises
        ------
        PartError
            If it raises, or answers neither True nor False.
        """
        answer = self._call("applies", observations)
        if not isinstance(answer, bool):
            raise self._failure(f"returned {answer!r} from applies", "True or False is needed")
        return answer

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Reconstruct the private batch behind every observation.

        Raises
        ------
        PartError
            If it raises, or does not return one usable reconstruction for each observation.
        """
        options = {"seed": seed, "public": public, "progress": progress, "device": device}
        made = self._call("reconstruct", observations, **options)
        if not isinstance(made, Sequence) or not all(isinstance(r, Reconstruction) for r in made):
            raise self._failure(f"returned {_kind(made)}")
        if len(made) != len(observations):
            raise self._failure(
                f"returned {len(made)} reconstructions for {len(observations)} observations"
            )
        for one, source in zip(made, observations, strict=True):
            fault = _fault(one, source)
            if fault:
                raise self._failure(f"returned {fault}")
        return [replace(r, attack=self.name, images=r.images.detach()) for r in made]

    def _call(self, method: str, *given: Any, **options: Any) -> Any:
        try:
            return getattr(self.part, method)(*given, **options)
        except Exception as error:
            raise self._failure(f"raised {type(error).__name__}: {error}") from error

    def _failure(self, what: str, needed: str = _NEEDED) -> PartError:
        return PartError(f"attacks = {self.spec!r}: the attack {what}; {needed}")


def plugin_attack(spec: str) -> PluginAttack:
    """Return the attack that a spec names.

    Raises
    ------
    ValueError
        If there is no such attack, a parameter is not allowed, or a method is missing.
    """
    part = make("attack", spec)
    for method in ("applies", "reconstruct"):
        if not callable(getattr(part, method, None)):
            module = module_of("attack", Spec.parse(spec).name)
            raise ValueError(f"the attack {spec!r} of {module!r} has no method {method}")
    return PluginAttack(spec, part)


def plugin_entries() -> list[dict[str, Any]]:
    """Return of every registered attack its ``name``, ``summary`` and default ``values``."""
    return [_entry(name) for name in names("attack")]


def _entry(name: str) -> dict[str, Any]:
    part = find("attack", name)
    summary = " ".join((getdoc(part) or "").split("\n\n")[0].split())
    return {"name": name, "summary": summary, "values": default_parameters(part)}


def _kind(made: object) -> str:
    if not isinstance(made, Sequence):
        return f"an object of type {type(made).__name__}"
    kinds = sorted({type(one).__name__ for one in made})
    return f"a {type(made).__name__} of {', '.join(kinds)}"


def _fault(made: Reconstruction, source: Observation) -> str:
    """Return what is wrong with a reconstruction; empty if it can be stored and scored."""
    where = f"for round {source.round}, client {source.partition}"
    try:
        check_types(made)
        if made.objective:
            AttackLoss.parse(made.objective)
    except (TypeError, AttributeError, ValueError) as error:
        return f"a reconstruction that cannot be stored {where} ({error})"
    expected = (source.work.images, *source.model.shape)
    classes = source.model.classes
    faults = {
        f"a reconstruction of round {made.round}, client {made.partition}": (
            (made.trial, made.round, made.partition)
            != (source.trial, source.round, source.partition)
        ),
        f"images of shape {tuple(made.images.shape)} instead of {expected}": (
            tuple(made.images.shape) != expected
        ),
        "images that are not finite": not bool(made.images.isfinite().all()),
        f"labels outside 0 to {classes - 1}": not all(
            0 <= label < classes for label in made.labels.tolist()
        ),
        "tensors that are not on the CPU": made.images.is_cuda or made.labels.is_cuda,
    }
    return next((f"{fault} {where}" for fault, present in faults.items() if present), "")
