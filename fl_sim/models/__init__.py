"""One architecture a file; what a model is, and how it is built from its public description."""

from fl_sim.models import (  # noqa: F401 - they register themselves
    cnn,
    convnet,
    imprint,
    lenet,
    loki,
    mlp,
    resnet,
    torchvision_models,
    vit,
)
from fl_sim.models.spec import (
    ModelSpec,
    build_model,
    check_fits,
    check_spec,
    partly_trained,
    register_model,
    spec_of_app,
)

__all__ = [
    "ModelSpec",
    "build_model",
    "check_fits",
    "check_spec",
    "partly_trained",
    "register_model",
    "spec_of_app",
]
