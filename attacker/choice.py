"""A suite of attacks: per client, the reconstruction that predicts best what was held back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, nan

import torch
from torch import Tensor

from attacker.attack import Attack, Progress
from attacker.matching.matching import Matching
from attacker.matching.problems import (
    ClientGroup,
    Problems,
    batchable,
    client_groups,
    repeats_images,
)
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.evidence import BLOCKS, HeldBack, choose, nats
from fl_sim.observed.observations import Observation
from fl_sim.observed.patches import can_judge
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.updates.local_update import one_hot

_Key = tuple[str, int, int]

_SHORT = 50  # iterations from one guess to the next, where little has changed
_PROGRESS = 1e-4  # nats by which another weight of the prior must be better to go on


@dataclass(frozen=True)
class Suite:
    """Attacks of which the strongest counts, chosen without the truth.

    A tenth of every payload is hidden from all attacks, and the guess that predicts the hidden
    elements best is chosen (`fl_sim.observed.evidence`); the attack that made it then continues
    from there on the whole payload. Where clients use the same images in every round, a guess from
    one round counts for all, and is held against the payloads of all.

    Attributes
    ----------
    name : str
        Name of the suite.
    members : tuple[Attack, ...]
        Those that do not apply are left out.
    """

    name: str
    members: tuple[Attack, ...]

    @property
    def needs_public(self) -> bool:
        """Whether no member can be run without public images."""
        return all(member.needs_public for member in self.members)

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference: without, members that need some are left out."""
        return any(member.uses_public for member in self.members)

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether any member applies."""
        return any(member.applies(observations) for member in self.members)

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Run every member that applies; see `Attack.reconstruct`.

        Returns
        -------
        list of Reconstruction
            One per observation that a guess was made at, in their order, with its evidence and the
            other guesses.
        """
        together = all(map(repeats_images, observations))
        groups = client_groups(observations, "joint" if together else "single")
        found: dict[_Key, Reconstruction] = {}
        for indices in batchable(groups):
            row = _Row(self.name, [groups[index] for index in indices], seed, public, device)
            usable = [member for member in self.members if row.can_use(member)]
            for done, member in enumerate(usable, 1):
                if not row.solved:
                    row.search(member) if isinstance(member, Matching) else row.attempt(member)
                if progress is not None:
                    progress(
                        len(found) + done * len(row.observations) // len(usable), len(observations)
                    )
            row.polish()
            for index, one in row.finish().items():
                found.update({_key(o): replace(one, round=o.round) for o in row.groups[index]})
        return [found[_key(o)] for o in observations if _key(o) in found]


def with_evidence(attack: Attack, name: str = "") -> Suite:
    """Return an attack whose reconstructions have evidence: a suite of this attack alone.

    Parameters
    ----------
    attack : Attack
        A suite is returned as it is.
    name : str
        Name in what is reconstructed; that of the attack if empty.
    """
    if isinstance(attack, Suite):
        return replace(attack, name=name or attack.name)
    return Suite(name or attack.name, (attack,))


@dataclass(frozen=True, eq=False)
class _Tried:
    """One guess of an attack at the images of each victim, and its evidence ``(B, BLOCKS)``.

    ``start`` has the guesses from which it is made anew on the whole payloads.
    """

    attack: Attack
    guesses: Sequence[Reconstruction | None]
    evidence: Tensor
    start: Sequence[Reconstruction | None]

    @property
    def strength(self) -> float:
        """How strong the prior was; not a number where it cannot be compared."""
        return self.attack.strength if isinstance(self.attack, Matching) else nan

    @property
    def nats(self) -> float:
        """Median evidence of the victims that it made a guess at; lower is better.

        A victim that a search failed on says nothing about the weight of the prior.
        """
        there = torch.tensor([guess is not None for guess in self.guesses])
        return float(self.evidence[there].mean(dim=1).median())


@dataclass(frozen=True, eq=False)
class _Row:
    """Clients that are attacked together, and all guesses that were made at their images.

    Attributes
    ----------
    name : str
        Of the suite.
    groups : sequence of ClientGroup
        Observations of the same images, one group for each victim.
    seed, public, device
        As of `Suite.reconstruct`.
    tried : list of _Tried
        In order.
    """

    name: str
    groups: Sequence[ClientGroup]
    seed: int
    public: PublicImages | None
    device: str
    tried: list[_Tried] = field(default_factory=list)

    @cached_property
    def observations(self) -> list[Observation]:
        """All of them, with their whole payloads."""
        return [o for group in self.groups for o in group]

    @cached_property
    def _rounds(self) -> list[Problems]:
        """What each round tells of all victims, with whole payloads."""
        return [Problems.of([[o] for o in seen]) for seen in zip(*self.groups, strict=True)]

    @property
    def _problems(self) -> Problems:
        return self._rounds[-1]

    def can_use(self, attack: Attack) -> bool:
        """Tell whether an attack can be run on these observations."""
        there = self.public is not None or not attack.needs_public
        return there and attack.applies(self.observations)

    @property
    def solved(self) -> bool:
        """Whether all fine payloads are explained by a guess, so that no other can be better."""
        if not (self._problems.fine and self._problems.determined):
            return False
        explained = [map(_explains, one.guesses) for one in self.tried]
        return bool(explained) and all(map(any, zip(*explained, strict=True)))

    def search(self, attack: Matching) -> None:
        """Run a search: once from its start, then from others where it failed.

        Where payloads are coarse and no search explained its own, there are no restarts: they would
        end at similar images.
        """
        once = replace(attack, restarts=0)
        best = self._tune(once) if attack.prior == "tuned" else self.attempt(once)
        failed = [row for row, one in enumerate(best.guesses) if not _explains(one)]
        hopeful = len(failed) < len(self.groups) or self._problems.fine
        if attack.restarts and failed and hopeful and isinstance(best.attack, Matching):
            patient = replace(best.attack, restarts=attack.restarts)
            self._try(patient, self._run(patient.restart, self._shown(failed)))

    def _tune(self, attack: Matching) -> "_Tried":
        """Try smaller and larger weights of the prior, for as long as the evidence grows.

        Each continues from the guesses that were made with the weight before.
        """
        if self._problems.cell.noise != "none":
            attack = attack.for_noise()
        elif self._problems.fine:
            attack = attack.for_fine()
        return self._walk(self.attempt(attack), self._continue)

    def _walk(self, first: "_Tried", onward: Callable[[Matching, "_Tried"], "_Tried"]) -> "_Tried":
        """Try smaller and larger weights; ``onward`` runs an attack after what was tried last."""
        best = first
        assert isinstance(first.attack, Matching)
        for larger in (False, True):
            last, step = first, first.attack.reweighted(larger)
            while step is not None:
                tried = onward(step, last)
                best = min(best, tried, key=lambda one: one.nats)
                if tried.nats > last.nats - _PROGRESS:
                    break
                last, step = tried, step.reweighted(larger)
            if best is not first:
                break
        return best

    def polish(self) -> None:
        """Continue the best tuned search with the prior of natural patches, where that applies."""
        tuned = [
            one
            for one in self.tried
            if isinstance(one.attack, Matching) and one.attack.prior == "tuned"
        ]
        if not tuned or self.solved or not can_judge(self._problems.image_shape):
            return
        best = min(tuned, key=lambda one: one.nats)
        rows = [row for row, guess in enumerate(best.guesses) if guess is not None]
        guesses = [guess for guess in best.guesses if guess is not None]

        def attempt(attack: Matching) -> "_Tried":
            made = attack.refine(self._shown(rows), guesses, device=self.device)
            return self._try(attack, made, best.guesses)

        noisy = self._problems.cell.noise != "none"
        assert isinstance(best.attack, Matching)
        self._walk(attempt(best.attack.with_patches(noisy)), lambda step, _: attempt(step))

    def attempt(self, attack: Attack) -> "_Tried":
        """Run an attack on what is shown of all victims; return its best guesses.

        An attack on single rounds makes several guesses at a client that repeats its images. They
        are compared too.
        """
        return self._try(
            attack, self._run(attack.reconstruct, self._shown(range(len(self.groups))))
        )

    def _continue(self, attack: Matching, last: "_Tried") -> "_Tried":
        """Continue from other guesses, on what is shown of all victims."""
        guesses = [guess for guess in last.guesses if guess is not None]
        shown = self._shown(range(len(self.groups)))
        made = attack.within(_SHORT).refine(shown, guesses, device=self.device)
        return self._try(attack, made)

    def _shown(self, rows: Iterable[int]) -> list[Observation]:
        """Return what was observed of some victims, with a tenth of each payload held back."""
        return [o.hold_back(HeldBack()) for row in rows for o in self.groups[row]]

    def _run(
        self,
        reconstruct: Callable[..., list[Reconstruction]],
        observations: Sequence[Observation],
    ) -> list[Reconstruction]:
        return reconstruct(observations, seed=self.seed, public=self.public, device=self.device)

    def _try(
        self,
        attack: Attack,
        found: Sequence[Reconstruction],
        start: Sequence[Reconstruction | None] = (),
    ) -> "_Tried":
        """Judge what an attack found by what was held back; return its best guesses."""
        made = {_key(one): one for one in found}
        guesses = [[made[_key(o)] for o in group if _key(o) in made] for group in self.groups]
        tried = []
        for number in range(max(map(len, guesses))):
            column = [ones[number] if number < len(ones) else None for ones in guesses]
            tried.append(_Tried(attack, column, self._evidence(column), start or column))
        self.tried.extend(tried)
        return min(tried, key=lambda one: one.nats)

    def _evidence(self, guesses: Sequence[Reconstruction | None]) -> Tensor:
        """Return the nats ``(B, BLOCKS)`` of what was held back; mean over a client's rounds."""
        evidence = torch.full((len(guesses), BLOCKS), inf, dtype=torch.float64)
        made = {row: one for row, one in enumerate(guesses) if one is not None}
        images = torch.stack([one.images for one in made.values()]).clamp(0, 1)
        labels = torch.stack([one.labels for one in made.values()])
        each = []
        for whole in self._rounds:
            problems = whole.select(torch.tensor(list(made)))
            hidden = HeldBack().elements(problems.flat_model.layout, problems.cell.sizes)
            with torch.no_grad():
                updates = problems.candidate(images, one_hot(labels, problems.model.classes))
            each.append(nats(problems.cell, hidden, updates))
        evidence[list(made)] = torch.stack(each).mean(dim=0).nan_to_num(inf)
        return evidence

    def finish(self) -> dict[int, Reconstruction]:
        """Return for each victim the guess that is chosen, continued on the whole payload.

        An attack on several rounds makes one guess for all of them: the earlier ones have none.
        """
        evidence = torch.stack([one.evidence for one in self.tried])
        guessed = [
            row for row in range(len(self.groups)) if any(one.guesses[row] for one in self.tried)
        ]
        strengths = [one.strength for one in self.tried]
        chosen = dict(zip(guessed, choose(evidence[:, guessed], strengths).tolist(), strict=True))
        found: dict[int, Reconstruction] = {}
        for number in set(chosen.values()):
            rows = [row for row, its in chosen.items() if its == number]
            found.update(self._continued(self.tried[number], rows))
        return {row: self._described(found[row], row, number) for row, number in chosen.items()}

    def _continued(self, tried: _Tried, rows: Sequence[int]) -> dict[int, Reconstruction]:
        """Return the guesses at some victims, made anew from all that was observed."""
        guesses = {row: one for row in rows if (one := tried.start[row]) is not None}
        attack = tried.attack
        if isinstance(attack, Matching):
            observed = [o for row in rows for o in self.groups[row]]
            made = attack.refine(observed, list(guesses.values()), device=self.device)
        else:
            made = self._run(attack.reconstruct, self.observations)
        by_key = {_key(one): one for one in made}
        return {row: by_key[_key(one)] for row, one in guesses.items()}

    def _described(self, made: Reconstruction, row: int, number: int) -> Reconstruction:
        """Return a reconstruction with its evidence, the other guesses, and all that was spent."""
        known = {index: one.guesses[row] for index, one in enumerate(self.tried)}
        guesses = {index: guess for index, guess in known.items() if guess is not None}
        others = [guess.images for index, guess in guesses.items() if index != number]
        return replace(
            made,
            attack=self.name,
            evidence=tuple(self.tried[number].evidence[row].tolist()),
            evaluations=made.evaluations + sum(guess.evaluations for guess in guesses.values()),
            others=torch.stack(others) if others else made.others,
        )


def _explains(guess: Reconstruction | None) -> bool:
    return guess is not None and guess.status == "converged"


def _key(one: Observation | Reconstruction) -> _Key:
    return one.trial, one.round, one.partition
