import builtins
import logging
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from results.scores import perceptual
from results.scores.scoring import score_images

pytest.importorskip("torchmetrics")


@pytest.fixture(autouse=True)
def fresh():
    perceptual._metric.cache_clear()
    yield
    perceptual._metric.cache_clear()


def layers() -> nn.Sequential:
    """The features of AlexNet with random weights, in the positions of torchvision's."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Weights that seem to be at hand, and a backbone that does not read them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    backbone = SimpleNamespace(features=layers())
    monkeypatch.setattr(torchvision.models, "alexnet", lambda weights: backbone)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 80, 96)])
def test_equal_pictures_have_no_distance_and_nearer_ones_a_smaller(weights, shape):
    truth = torch.rand(5, *shape, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    assert perceptual.lpips(truth, truth) == pytest.approx([0] * 5, abs=1e-6)
    near, far = (perceptual.lpips((truth + a * noise).clamp(0, 1), truth) for a in (0.05, 0.5))
    assert (near > 0).all()
    assert (near < far).all()


def test_scores_have_a_column_only_where_the_weights_are_at_hand(weights):
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    broken = images.clone()
    broken[1, 0, 0, 0] = torch.nan
    scores = score_images(broken, images)
    assert scores["lpips"].tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_missing_weights_are_said_once_in_one_line(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = torch.rand(2, 1, 8, 8)
    with caplog.at_level(logging.INFO, "fl_sim.results"):
        assert all("lpips" not in score_images(images, images) for _ in range(2))
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert message.startswith("LPIPS is left out: its weights are not at hand; put https://")
    assert "alexnet-owt-7be5be79.pth" in message
    assert "\n" not in message


def test_nothing_is_said_where_the_extra_is_not_installed(monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("torchmetrics"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert perceptual.lpips(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)) is None
    assert not caplog.records
