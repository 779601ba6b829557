"""Classifiers of torchvision by name, without their published weights."""

from torch import Tensor, nn

from fl_sim.models.spec import ModelSpec
from fl_sim.registry import register
from fl_sim.suggestions import one_of


@register("model", "torchvision")
def torchvision(spec: ModelSpec, *, name: str) -> nn.Module:
    """Return a classifier of `torchvision.models`, for as many classes as there are.

    Grey images are repeated to three channels. Nothing is downloaded: `pretrain` trains weights, or
    the setting ``initial_weights`` reads those of a file.

    Parameters
    ----------
    spec : ModelSpec
        The model as a whole.
    name : str
        As torchvision names it, e.g. ``mobilenet_v3_small``.
    """
    from torchvision import models  # noqa: PLC0415 - 130 MB, only where needed

    known = [one for one in models.list_models(module=models) if one not in _SEVERAL_OUTPUTS]
    if name not in known:
        raise ValueError(f"name={name} is not allowed; {one_of(name, known)}")
    channels, height, width = spec.shape
    if channels not in (1, 3):
        raise ValueError(f"torchvision's models need 1 or 3 channels, not {channels}.")
    options: dict[str, int] = {}
    if name.startswith("vit_"):
        if height != width:
            raise ValueError(f"name={name} needs images as high as wide, not {height}x{width}.")
        options["image_size"] = height
    model: nn.Module = models.get_model(name, weights=None, num_classes=spec.classes, **options)
    if channels == 1:
        model.register_forward_pre_hook(_repeated)
    return model


_SEVERAL_OUTPUTS = ("googlenet", "inception_v3")  # while they train


def _repeated(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0].expand(-1, 3, -1, -1)
