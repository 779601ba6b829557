import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.data import astronaut
from skimage.transform import resize

from fl_sim.observed import patches
from fl_sim.observed.attack_loss import AttackLoss


def _scene(side: int = 24) -> torch.Tensor:
    """Return a real picture ``(1, 1, 3, side, side)``."""
    return torch.tensor(resize(astronaut(), (side, side))).permute(2, 0, 1)[None, None].float()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_scene_is_more_natural_than_its_pixels_in_another_order(channels: int) -> None:
    scene = _scene()[:, :, :channels]
    order = torch.randperm(24 * 24, generator=torch.Generator().manual_seed(0))
    mixed = scene.flatten(3)[..., order].reshape(scene.shape)
    assert patches.energy(scene) + 0.5 < patches.energy(mixed)


@pytest.mark.parametrize("channels", [1, 3])
@given(seed=st.integers(0, 1000))
def test_any_other_components_give_a_bound_above_the_energy(channels: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 1, channels, 7, 6, generator=rng)
    components = torch.randint(0, 40, (2, 1, 3 * 2), generator=rng)
    least = patches.energy(images)
    assert (least >= 0).all()
    assert (least <= patches.energy(images, components) + 1e-4).all()


def test_the_energy_is_the_likelihood_under_the_mixture() -> None:
    images = torch.rand(1, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mixture = patches.natural_patches(3)
    likelihood = mixture.log_weights + torch.distributions.MultivariateNormal(
        mixture.means, mixture.covariances
    ).log_prob(images.flatten().double())
    flat = torch.distributions.MultivariateNormal(mixture.means, mixture.covariances)
    most = (mixture.log_weights + flat.log_prob(mixture.means)).max()
    size = images.numel()
    assert float(patches.energy(images)) == pytest.approx(
        float(most - likelihood.max()) / size, rel=1e-3
    )


def test_grey_patches_are_the_mean_over_colours() -> None:
    grey, colour = patches.natural_patches(1), patches.natural_patches(3)
    assert grey.means.shape == (40, 25)
    torch.testing.assert_close(grey.means, colour.means.reshape(40, 3, 25).mean(dim=1))
    eigenvalues = torch.linalg.eigvalsh(grey.covariances)
    assert (eigenvalues > 0).all()


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    images = torch.rand(5, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([patches.energy(image[None]) for image in images])
    torch.testing.assert_close(patches.energy(images), alone)


def test_the_file_belongs_to_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patches, "_SHA256", "0" * 64)
    patches.natural_patches.cache_clear()
    with pytest.raises(ValueError, match="patches.json is not the file"):
        patches.natural_patches(3)
    patches.natural_patches.cache_clear()


@pytest.mark.parametrize(
    ("shape", "judged"),
    [
        ((3, 32, 32), True),
        ((1, 28, 28), True),
        ((1, 8, 8), False),
        ((3, 15, 40), False),
        ((2, 32, 32), False),
    ],
)
def test_what_pictures_can_be_judged(shape: tuple[int, int, int], judged: bool) -> None:
    assert patches.can_judge(shape) is judged


def test_the_loss_counts_patches_by_their_weight() -> None:
    scene = _scene(12)
    loss = AttackLoss.parse("cell:patches=0.5")
    assert AttackLoss.parse(loss.spec) == loss
    torch.testing.assert_close(loss.prior(scene), 0.5 * patches.energy(scene))
    torch.testing.assert_close(loss.prior(scene, patches.assign(scene)), loss.prior(scene))
