from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fl_sim.choices import MODEL_NAMES
from fl_sim.models import ModelSpec, build_model, check_fits, register_model
from fl_sim.testing import check_model
from fl_sim.updates.local_update import layout_of_model

CIFAR = (3, 32, 32)
GROUP_OR_NONE = [
    *(name for name in MODEL_NAMES if name != "resnet20"),
    "imprint(lenet)",
    "resnet20:norm=group",
    "convnet:width=8,layers=2,norm=none,activation=relu",
]
BATCH_NORM = ["resnet20", "resnet18:norm=batch", "convnet:norm=batch"]


@pytest.mark.parametrize("name", [*GROUP_OR_NONE, *BATCH_NORM, "torchvision:name=mnasnet0_5"])
def test_every_model_is_sized_to_the_data(name):
    check_model(name, (3, 16, 12), 7)
    buffers = list(build_model(ModelSpec(name, (3, 16, 12), 7)).buffers())
    assert bool(buffers) == (name not in GROUP_OR_NONE)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("convnet", 98_826),
        ("resnet20", 269_722),  # 0.27 million in table 6 of the paper
        ("resnet18:norm=batch", 11_173_962),
        ("torchvision:name=resnet18", 11_181_642),
        ("vit", 459_370),
    ],
)
def test_parameter_counts(name, parameters):
    assert layout_of_model(ModelSpec(name, CIFAR, 10)).size == parameters


@pytest.mark.parametrize("width", [16, 32, 56])
def test_the_family_of_relu_networks_has_a_tenth_to_one_million_parameters(width):
    name = f"convnet:width={width},layers=2,norm=none,activation=relu"
    assert 5e4 < layout_of_model(ModelSpec(name, CIFAR, 10)).size < 1e6


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 96, 96)])
@pytest.mark.parametrize("name", ["resnet20", "vit", "torchvision:name=mnasnet0_5", "convnet"])
def test_grey_and_larger_images_are_classified(name, shape):
    model = build_model(ModelSpec(name, shape, 4)).eval()
    with torch.no_grad():
        assert model(torch.rand(2, *shape)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit:patch=5", "patch=5 does not divide the sides of 32x32"),
        ("vit:heads=5", "heads=5 does not divide width=96"),
        ("torchvision:name=resnet81", "did you mean"),
        ("torchvision:name=googlenet", "name=googlenet is not allowed"),
        ("convnet:width=0", "width=0 is not allowed"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_fits(ModelSpec(name, CIFAR, 10))
    assert "\n" not in str(caught.value)


def test_images_too_small_for_a_model_are_refused_and_others_are_not():
    check_fits(ModelSpec("torchvision:name=alexnet", (3, 64, 64), 10))
    with pytest.raises(ValueError, match="cannot classify 3x8x8 images .* too small"):
        check_fits(ModelSpec("torchvision:name=alexnet", (3, 8, 8), 10))


class _Unfinished(nn.Module):
    """A model as its author left it: ``forward`` does what it is told."""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        return self.answer(images)


def _of_unknown_layer() -> nn.Module:
    raise KeyError("no such layer")


def _unfinished(images: Tensor) -> object:
    raise TypeError("forward is unfinished")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (_of_unknown_layer, r"other cannot be built \(KeyError: 'no such layer'\)"),
        (lambda: 3, "other builds a int, not a torch.nn.Module"),
        (lambda: _Unfinished(_unfinished), "cannot classify 1x8x8 images .*is unfinished"),
        (lambda: _Unfinished(lambda x: (x, None)), r"makes tuple of 2 1x8x8 images, not logits"),
        (lambda: _Unfinished(lambda x: x.flatten(1)), r"makes \(2, 64\) .*not logits \(2, 10\)"),
        (lambda: _Unfinished(lambda x: x[: int(x.sum())]), "cannot classify 1x8x8 images"),
    ],
)
def test_models_of_other_people_that_cannot_work_are_refused_in_one_line(build, words):
    register_model("other", build)
    with pytest.raises(ValueError, match=words) as refused:
        check_fits(ModelSpec("other", (1, 8, 8), 10))
    assert "\n" not in str(refused.value)


def test_layers_that_wait_for_an_input_have_their_size_and_the_weights_of_the_seed():
    def build():
        return nn.Sequential(
            nn.Flatten(), nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(10)
        )

    register_model("lazy", build)
    spec = ModelSpec("lazy", (1, 8, 8), 10)
    check_fits(spec)
    one, two, other = (build_model(spec, seed) for seed in (0, 0, 1))
    assert one[1].weight.shape == (6, 64)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one[1].weight, other[1].weight)
    assert all(layer.training for layer in one.modules())
    assert torch.equal(one[2].running_mean, torch.zeros(6))
