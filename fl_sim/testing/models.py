"""What every model promises."""

import torch

from fl_sim.models import ModelSpec, build_model, check_spec
from fl_sim.testing.contract import ContractError, make_twice, require
from fl_sim.updates.differentiable import NotDifferentiableError, check_differentiable
from fl_sim.updates.local_update import Layout, layout_of_model


def check_model(name: str, shape: tuple[int, int, int] = (3, 16, 12), classes: int = 7) -> None:
    """Check that a model keeps what every model promises.

    Its initial weights are a function of the seed alone. It maps any number of images to as many
    rows of logits, and leaves the images as they are. Unless it has buffers, as a model with
    BatchNorm has, its update can be differentiated with respect to the images: attacks need that.

    Parameters
    ----------
    name : str
        Spec of a model that is registered.
    shape : tuple[int, int, int]
        Channels, height and width of the images to check with.
    classes : int
        Number of labels to check with.

    Raises
    ------
    ContractError
        If a promise is not kept.
    ValueError
        If there is no such model.

    Examples
    --------
    >>> from fl_sim.testing import check_model
    >>> check_model("mlp")
    """
    spec = ModelSpec(name, shape, classes)
    check_spec(spec)
    module, again = make_twice(f"{name}: building", lambda: build_model(spec))
    states = module.state_dict(), again.state_dict()
    require(
        states[0].keys() == states[1].keys()
        and all(torch.equal(value, states[1][key]) for key, value in states[0].items()),
        f"{name}: initial weights are not a function of the seed; draw them from PyTorch's "
        "global generator",
    )
    layout = Layout.of(module)
    require(layout.size, f"{name}: has no parameter that is trained")
    require(layout_of_model(spec) == layout, f"{name}: has other parameters on the device 'meta'")
    module.eval()
    rng = torch.Generator().manual_seed(0)
    for count in (1, 3):
        images = torch.rand((count, *shape), generator=rng)
        given = images.clone()
        with torch.no_grad():
            logits = module(images)
        require(
            logits.shape == (count, classes),
            f"{name}: {count} images give logits of shape {tuple(logits.shape)}, "
            f"not {(count, classes)}",
        )
        require(
            logits.dtype == torch.float32 and logits.isfinite().all(),
            f"{name}: logits are not finite float32",
        )
        require(torch.equal(given, images), f"{name}: changes its images")
    if not list(module.buffers()):
        try:
            check_differentiable(spec)
        except NotDifferentiableError as error:
            raise ContractError(f"{name}: {error}") from error
