"""A search for the few images to which a malicious server reduced the update of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attacker.attack import Progress
from attacker.batches import Batches
from attacker.matching.labels import recover_labels
from attacker.matching.matching import Matching
from attacker.matching.optimizers import LBFGS
from attacker.matching.problems import ClientGroup, Problems, client_groups
from attacker.matching.starts import StartContext
from attacker.readers.synthetic import synthetic_images
from attacker.solutions import Solution, mean_misfit
from fl_sim.data.public_images import PublicImages
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.plans import Fishing, parse_plan
from fl_sim.plans.fishing import names_of
from fl_sim.specs import NOT_A_PARAMETER, Spec, not_negative, positive
from fl_sim.updates.layers import find_head
from fl_sim.updates.local_update import one_hot

_SURE = 2.0  # steps, or scales of noise, that tell one number from another
_FAR = 1e6  # added to a logit, so that its class is predicted by no means, or always
_FILLERS = 50  # pictures of which one is to leave no gradient


@dataclass(frozen=True)
class FishingSearch:
    """Searches for the images that the server fished for; the others stay grey.

    Below the classifier, and in the classifier's row of the target class, the update of a batch of
    n images is that of the m images that were caught, times m / n (Wen et al. 2022, arXiv
    2202.00580). The gradient of the row's bias tells m: it is -m / n, or m / n where images of
    other classes were wanted. So the passive search `cell` looks for m images with known labels,
    as if the model never predicted the target (or always). A payload too coarse to tell one image
    from none, or without a scale, tells no more than that there are some; m is then taken to be 1.

    Attributes
    ----------
    name : str
        Name of the preset it was built from.
    iterations : int
        Most iterations of L-BFGS from one start.
    restarts : int
        Most further starts for a batch whose caught images do not yet explain their update.
    batch : int
        Most problems solved together; bounds the memory.
    """

    name: str = field(metadata=NOT_A_PARAMETER)
    iterations: int = 300
    restarts: int = 4
    batch: int = 64

    def __post_init__(self) -> None:
        positive("iterations", self.iterations)
        not_negative("restarts", self.restarts)
        positive("batch", self.batch)

    @property
    def needs_public(self) -> bool:
        """Whether the attack needs public images."""
        return False

    @property
    def uses_public(self) -> bool:
        """Whether public images make a difference."""
        return False

    def applies(self, observations: Sequence[Observation]) -> bool:
        """Tell whether the server fished, in one step, through a quantizer without a rotation."""
        return all(map(_can_search, observations))

    def reconstruct(
        self,
        observations: Sequence[Observation],
        *,
        seed: int,
        public: PublicImages | None = None,
        progress: Progress | None = None,
        device: str = "cpu",
    ) -> list[Reconstruction]:
        """Search for the caught images of every observation; see `Attack.reconstruct`.

        Returns
        -------
        list of Reconstruction
            One per observation, in their order: the caught images first, then grey ones. It is
            ``converged`` only if all images were caught.
        """
        del public
        context, batches = StartContext(seed, 0), Batches(self.batch, device)

        def solve(groups: Sequence[ClientGroup]) -> Solution:
            plans = [_fished(group[-1].server) for group in groups]
            fished = [plan for plan in plans if plan is not None]
            most = batches.size(groups[0])
            return self._catch(Problems.of(groups), fished, context, most, device)

        groups = client_groups(observations, "single")
        return batches.solve(groups, solve, self.name, self._search.loss.spec, progress)

    @property
    def _search(self) -> Matching:
        return Matching(
            self.name,
            loss=AttackLoss("cell", tv=3e-4, box=1.0),
            optimizer=LBFGS(self.iterations, progress=1e-4),
            warmup=50,
            restarts=self.restarts,
        )

    def _catch(
        self,
        problems: Problems,
        plans: Sequence[Fishing],
        context: StartContext,
        most: int,
        device: str,
    ) -> Solution:
        """Find the images that were fished for by ``plans``, one for each problem."""
        search = self._search
        if problems.cell.noise != "none":
            search = search.for_noise()
        elif problems.fine:
            search = search.for_fine()
        counts, gates = _caught(problems, plans)
        images = _silent_images(problems, plans)
        spent = torch.zeros(len(problems), dtype=torch.int64)
        for plan, count in dict.fromkeys(zip(plans, counts, strict=True)):
            if count:
                same = [one == (plan, count) for one in zip(plans, counts, strict=True)]
                rows = torch.tensor(same).nonzero()[:, 0]
                caught = _of_caught(problems.select(rows), plan, count, gates[rows])
                found = search.solve(caught, context, most, device)
                images[rows, :count], spent[rows] = found.images, found.evaluations
        recovered = recover_labels(problems)
        labels = torch.stack(list(map(_labels, recovered, counts, plans)))
        targets = one_hot(labels, problems.model.classes)
        with torch.no_grad():
            losses = search.loss(images, problems.candidate(images, targets), problems.cell)
            misfits = mean_misfit(problems, images, targets)
        misfits = misfits.masked_fill(torch.tensor(counts) < problems.work.images, torch.inf)
        return Solution(images, labels, losses, misfits, spent)


def _fished(server: str) -> Fishing | None:
    """Return the plan by which a server fished, if it did; another may wrap it."""
    spec = Spec.parse(server)
    while spec.inner is not None:
        spec = Spec.parse(spec.inner)
    plan = parse_plan(str(spec)) if spec.name == Fishing.name else None
    return plan if isinstance(plan, Fishing) else None


def _can_search(observation: Observation) -> bool:
    plan, work, weights = _fished(observation.server), observation.work, observation.weights
    if plan is None or work.local_steps > 1 or work.local_batches > 1:
        return False
    if not plan.is_planted(observation.model, weights):
        return False
    if observation.statistics is not None:  # images that were not caught count in BatchNorm
        return False
    return observation.cell.transform is None and observation.cell.likelihood is None


def _caught(problems: Problems, plans: Sequence[Fishing]) -> tuple[list[int], Tensor]:
    """Return how many images were surely caught in each batch, and how far each gate was open.

    A feature near its quantile leaves a part of an image's gradient. The second value ``(B,)`` is
    the sum of these parts, or the number of images where the payload does not tell it.
    """
    _, bias = names_of(find_head(problems.model))
    work, cell, layout = problems.work, problems.cell, problems.flat_model.layout
    of_class = torch.arange(len(problems)), torch.tensor([plan.target for plan in plans])
    center, lower, upper, step = (
        layout.unflatten(one)[bias][of_class]
        for one in (cell.center, cell.lower, cell.upper, cell.step)
    )
    above = torch.tensor([plan.wanted == "others" for plan in plans])
    center = torch.where(above, -center, center)
    lower, upper = torch.where(above, -upper, lower), torch.where(above, -lower, upper)
    one = work.reach / work.images
    counts = (-center / one).round().clamp(0, work.images)
    unbounded = (upper - lower).isinf()
    highest = torch.where(upper.isinf() & (cell.noise != "none"), center + _SURE * step, upper)
    coarse = (_SURE * step > one) | (unbounded if cell.noise == "none" else False)
    found = torch.where(coarse, (highest <= 0) & (center < 0), counts)
    gates = torch.where(coarse, found, (-center / one).clamp(found - 0.5, found + 0.5))
    return [int(count) for count in found.tolist()], gates


def _of_caught(problems: Problems, plan: Fishing, count: int, gates: Tensor) -> Problems:
    """Return the problems of the ``count`` images in each batch that were caught.

    ``gates`` ``(B,)`` is the sum of the parts of their gradients, as of `_caught`.
    The target's logit is moved to where it has no say: a candidate then has its whole gradient
    wherever it lies, as images have that were caught.
    """
    layout, (weight, bias) = problems.flat_model.layout, names_of(find_head(problems.model))
    others = torch.arange(problems.model.classes) != plan.target
    hidden = layout.unflatten(torch.zeros(layout.size, dtype=torch.bool))
    hidden[weight][others], hidden[bias][others] = True, True
    unseen = layout.flatten(hidden)
    factors = (problems.work.images / gates).tolist()
    label = plan.target if plan.wanted == "class" else (plan.target + 1) % problems.model.classes
    moved = {}
    for weights in problems.sent_weights:
        tensors = layout.unflatten(weights.clone())
        tensors[bias][plan.target] += _FAR if plan.wanted == "others" else -_FAR
        moved[id(weights)] = layout.flatten(tensors)
    return replace(
        problems,
        work=replace(problems.work, batch_size=count),
        sent_weights=tuple(moved[id(weights)] for weights in problems.sent_weights),
        cells=tuple(
            cell.times(factor).without(unseen)
            for cell, factor in zip(problems.cells, factors, strict=True)
        ),
        known_labels=torch.full((len(problems), count), label),
    )


def _silent_images(problems: Problems, plans: Sequence[Fishing]) -> Tensor:
    """Return images ``(B, n, C, H, W)`` that were not caught: grey, or where that is, others.

    An image has no gradient if it lies on the other side of the feature's quantile.
    """
    grey = torch.full((1, *problems.model.shape), 0.5)
    images = torch.cat([grey, synthetic_images(problems.model.shape, _FILLERS, seed=0)])
    chosen = []
    for plan, weights in zip(plans, problems.sent_weights, strict=True):
        silent = plan.silence(problems.model, weights, problems.work.inputs(images))
        chosen.append(images[0 if silent[0] > 0 else int(silent.argmax())])
    return torch.stack(chosen)[:, None].repeat(1, problems.work.images, 1, 1, 1)


def _labels(recovered: Tensor, count: int, plan: Fishing) -> Tensor:
    """Return labels ``(n,)`` that begin with those of the caught images."""
    is_target = recovered == plan.target
    if plan.wanted == "others":
        return torch.cat([recovered[~is_target], recovered[is_target]])
    if plan.by_feature:  # images of the class that were not caught leave no trace
        labels = torch.cat([recovered[is_target], recovered[~is_target]])
        labels[:count] = plan.target
        return labels
    others = recovered[~is_target]
    rest = (others if len(others) else recovered).repeat(len(recovered))
    return torch.cat([torch.full((count,), plan.target), rest])[: len(recovered)]
