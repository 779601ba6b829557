"""The loss an attack minimises: how badly a candidate explains a payload, and how odd it looks."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fl_sim.coding.cell import Cell
from fl_sim.observed import patches
from fl_sim.specs import Spec, not_negative, parse_parameters, print_parameters
from fl_sim.suggestions import one_of

Objective = Literal["squared", "cosine", "scaled", "cell"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

_TV_SMOOTHING = 1e-3  # of a pixel's range; keeps the total variation differentiable
_CHROMA = 3.0  # by how much natural pictures vary less in hue than in brightness
_COLOUR_SCALE = 1.5  # natural colour pictures then vary as much as the same in grey
_OPPONENT = torch.stack(
    [
        torch.tensor([1.0, 1.0, 1.0]) / 3**0.5,
        _CHROMA * torch.tensor([1.0, 0.0, -1.0]) / 2**0.5,
        _CHROMA * torch.tensor([1.0, -2.0, 1.0]) / 6**0.5,
    ]
)


@dataclass(frozen=True)
class AttackLoss:
    """Objective and prior weights; the loss of every problem of a batch.

    Attributes
    ----------
    objective : {"squared", "cosine", "scaled", "cell"}
        How a candidate update g is held against what the payload tells (q its decoded value,
        both in the code domain):

        - ``squared``: sum (g - q)^2 / sum q^2. Deep Leakage from Gradients without the division,
          which makes the loss independent of how small a trained model's updates are.
        - ``cosine``: 1 - cos(g, q) over all elements (Geiping et al. 2020).
        - ``scaled``: mean ((g - q) / step)^2.
        - ``cell``: mean misfit, zero for every update that encodes to this very payload.
    tv : float
        Weight of the total variation, mean absolute difference of neighbouring pixels.
    patches : float
        Weight of how unlike natural pictures the patches are, in nats a value; see
        `fl_sim.observed.patches`.
    box : float
        Weight of the mean squared distance of the pixels to [0, 1].
    statistics : float
        Weight of the squared distance between the batch statistics of the candidate and those that
        the reply tells, where a model has BatchNorm: relative to their size, or in steps as the
        objective counts them. It needs no labels (Hatamizadeh et al. 2022, arXiv 2202.06924).
    floor : float
        Least step of ``scaled`` and ``cell``, relative to the root mean square of the tensor:
        no optimizer resolves the last bit of a float32.
    """

    objective: Objective = "squared"
    tv: float = 0.0
    patches: float = 0.0
    box: float = 0.0
    statistics: float = 1.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            known = one_of(self.objective, OBJECTIVES)
            raise ValueError(f"objective={self.objective} is not allowed; {known}")
        for name in ("tv", "patches", "box", "statistics", "floor"):
            not_negative(name, getattr(self, name))

    @property
    def spec(self) -> str:
        """Spec string that parses back to an equal loss, e.g. ``cell:tv=0.0001,box=1``."""
        weights = print_parameters(replace(self, objective=AttackLoss.objective))
        return str(Spec(self.objective, weights, None))

    @classmethod
    def parse(cls, spec: str) -> "AttackLoss":
        """Return the loss of a spec string.

        Raises
        ------
        ValueError
            If the objective or a weight is unknown or not a number.
        """
        parsed = Spec.parse(spec)
        every = f"objective={parsed.name},{parsed.parameters}".removesuffix(",")
        return cls(**parse_parameters(cls, every, parsed.inner))

    def __call__(
        self,
        images: Tensor,
        candidate: Tensor,
        cell: Cell,
        statistics: tuple[Tensor, Cell] | None = None,
    ) -> Tensor:
        """Return the loss of each problem.

        Parameters
        ----------
        images : Tensor
            ``(B, n, C, H, W)`` candidate images.
        candidate : Tensor
            ``(B, size)`` updates they would give.
        cell : Cell
            Stacked cells ``(B, d)`` of the payloads observed.
        statistics : tuple of Tensor and Cell, optional
            ``(B, s)`` change of the running statistics that the candidates would give, and the
            cells of what was observed of it.

        Returns
        -------
        Tensor
            ``(B,)``.
        """
        loss = self.match(candidate, cell) + self.prior(images)
        return loss if statistics is None else loss + self.match_statistics(*statistics)

    def match_statistics(self, change: Tensor, cell: Cell) -> Tensor:
        """Return the weighted term of the batch statistics alone, ``(B,)``."""
        if not self.statistics or not change.shape[-1]:
            return change.new_zeros(len(change))
        if self.objective in ("scaled", "cell"):
            return self.statistics * floored(cell, self.floor).misfit(change).mean(dim=-1)
        value, tiny = cell.to_code_domain(change), torch.finfo(change.dtype).tiny
        pieces = [torch.split(one, list(cell.sizes), dim=-1) for one in (value, cell.center)]
        shares = [
            (own - told).square().sum(-1) / told.square().sum(-1).clamp_min(tiny)
            for own, told in zip(*pieces, strict=True)
        ]
        return self.statistics * torch.stack(shares).mean(dim=0)

    def match(self, candidate: Tensor, cell: Cell) -> Tensor:
        """Return the data term alone, ``(B,)``; zero at a perfect explanation."""
        if self.objective == "cell":
            misfit = floored(cell, self.floor).misfit(candidate)
            return misfit.mean(dim=-1)
        # Of an element that is hidden nothing is told; its center is 0 and its step infinite.
        value = cell.to_code_domain(candidate).masked_fill(cell.step.isinf(), 0)
        if self.objective == "cosine":
            return 1 - torch.nn.functional.cosine_similarity(value, cell.center, dim=-1)
        difference = value - cell.center
        if self.objective == "scaled":
            return (difference / floored(cell, self.floor).step).square().mean(dim=-1)
        tiny = torch.finfo(value.dtype).tiny
        return difference.square().sum(-1) / cell.center.square().sum(-1).clamp_min(tiny)

    def prior(self, images: Tensor, components: Tensor | None = None) -> Tensor:
        """Return the weighted priors alone, ``(B,)``.

        Parameters
        ----------
        images : Tensor
            ``(B, n, C, H, W)``.
        components : Tensor, optional
            What `fl_sim.observed.patches.assign` gave for images nearby. It saves most of the time
            that patches take.
        """
        loss = images.new_zeros(images.shape[0])
        if self.tv:
            loss = loss + self.tv * total_variation(images)
        if self.patches:
            loss = loss + self.patches * patches.energy(images, components)
        if self.box:
            outside = (-images).relu() + (images - 1).relu()
            loss = loss + self.box * outside.square().flatten(1).mean(dim=1)
        return loss


def total_variation(images: Tensor) -> Tensor:
    """Return how much neighbouring pixels differ, ``(B, n, C, H, W) -> (B,)``.

    Grey pictures: mean absolute difference, down and right, smoothed at 0. Colour pictures: the
    length of the difference, down and right together (Rudin, Osher and Fatemi 1992), of their
    opponent channels, with the two of colour weighted `_CHROMA`: natural pictures vary much in
    brightness and little in hue.
    """
    if images.shape[-3] != 3:
        down, right = images.diff(dim=-2), images.diff(dim=-1)
        return _smooth_length(down.square()) + _smooth_length(right.square())
    opponent = torch.einsum("kc,bnchw->bnkhw", _OPPONENT.to(images), images)
    down, right = opponent.diff(dim=-2)[..., :-1], opponent.diff(dim=-1)[..., :-1, :]
    return _COLOUR_SCALE * _smooth_length(down.square() + right.square())


def _smooth_length(squares: Tensor) -> Tensor:
    return (squares + _TV_SMOOTHING**2).sqrt().flatten(1).mean(dim=1)


def floored(cell: Cell, floor: float) -> Cell:
    """Return the cell with no step finer than ``floor`` times the rms of its tensor.

    Tensors of which nothing was sent have no rms; theirs is that of the whole update. Where codes
    are random, the values that may give one reach at least a step to either side, unless they end
    at the code's own value.
    """
    if not floor:
        return cell
    overall = cell.center.square().mean(dim=-1, keepdim=True).sqrt()
    rms = torch.cat(
        [
            _or(piece.square().mean(dim=-1, keepdim=True).sqrt(), overall).expand_as(piece)
            for piece in torch.split(cell.center, list(cell.sizes), dim=-1)
        ],
        dim=-1,
    )
    tiny = torch.finfo(cell.step.dtype).tiny
    least = floor * rms
    wider = replace(cell, step=torch.maximum(cell.step, least).clamp_min(tiny))
    if cell.noise != "triangular":
        return wider
    lower, upper = cell.lower, cell.upper
    return replace(
        wider,
        lower=torch.where(cell.opens_below, torch.minimum(lower, cell.center - least), lower),
        upper=torch.where(cell.opens_above, torch.maximum(upper, cell.center + least), upper),
    )


def _or(value: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(value > 0, value, otherwise)
