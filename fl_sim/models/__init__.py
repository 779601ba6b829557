"""One architecture a file; what a model is, and how it is built from its public description."""

from fl_sim.models import cnn, convnet, imprint, lenet, loki, mlp, resnet  # noqa: F401 - they register themselves
from fl_sim.models.spec import (
    ModelSpec,
    build_model,
    check_spec,
    partly_trained,
    register_model,
    spec_of_app,
)

__all__ = [
    "ModelSpec",
    "build_model",
    "check_spec",
    "partly_trained",
    "register_model",
    "spec_of_app",
]
