import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacker.matching.frequencies import to_pixels
from attacker.matching.optimizers import LBFGS
from attacker.presets import build_attack
from tests.attacker.observing import digits, observe


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_images_of_frequencies_are_orthogonal_and_their_size_falls(height, width):
    count = height * width
    images = to_pixels(torch.eye(count).reshape(count, height, width)).flatten(1)
    products = images @ images.T
    size = products.diagonal().sqrt()
    assert torch.allclose(products, torch.diag(size.square()), atol=1e-5)
    assert float(size[0]) == size.max() == pytest.approx(1, rel=1e-5)
    assert (size.reshape(height, width).diff(dim=0) < 0).all()
    assert (size.reshape(height, width).diff(dim=1) < 0).all()


def test_a_closed_form_that_explains_its_payload_is_returned_to_the_last_digit():
    images, labels = digits(3)
    start = "cell:start=synthetic,warmup=0,iterations=1,restarts=0"
    (one, *_), (read, *_) = (
        build_attack(name).reconstruct(observe(images, labels), seed=0)
        for name in (start, "synthetic")
    )
    assert torch.equal(one.images, read.images)


def test_a_few_evaluations_over_frequencies_come_further_than_over_pixels(monkeypatch):
    images, labels = digits(6)
    seen = observe(images, labels)
    attack = build_attack("idlg:iterations=30,warmup=0,restarts=0,target=0")
    fast = attack.reconstruct(seen, seed=0)
    monkeypatch.setattr(LBFGS, "in_frequencies", False)
    slow = attack.reconstruct(seen, seed=0)
    better = [one.loss < other.loss for one, other in zip(fast, slow, strict=True)]
    assert sum(better) >= 5
