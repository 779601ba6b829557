import pytest
import torch

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from attacker.presets import build_attack
from clients.app import app
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.plans import Imprint
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import load_settings
from fl_sim.study.trials import trials_of
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.scoring import score_batch
from server.training import find_nodes, train_trial
from tests.attacker.observing import digits, initial_weights, observe

PLAN = Imprint()
SPEC = ModelSpec(PLAN.model("lenet"), (1, 8, 8), 10)
ATTACK = build_attack("active_imprint")


def planted():
    return PLAN.weights(SPEC, initial_weights(SPEC), digits(1000, seed=1)[0])


def one_a_bin(count):
    """Return images of different bins: every one is alone in its own."""
    images, labels = digits(400)
    tensors = flat_model(SPEC).layout.unflatten(planted())
    units = images.flatten(1) @ tensors["imprint.weight"].T + tensors["imprint.bias"] > 0
    chosen = {int(seen): row for row, seen in enumerate(units.sum(dim=1))}
    rows = torch.tensor(sorted(chosen.values())[:count])
    return images[rows], labels[rows]


def scores(found, images, labels):
    return score_batch(found.images, found.labels, images, labels)


@pytest.mark.parametrize("size", [1, 8, 32])
def test_images_that_are_alone_in_their_bins_are_recovered_exactly_with_their_labels(size):
    images, labels = one_a_bin(size)
    seen = observe(images, labels, work=LocalWork(batch_size=size), spec=SPEC, weights=planted())
    assert ATTACK.applies(seen)
    rows = scores(ATTACK.reconstruct(seen, seed=0)[0], images, labels)
    assert rows.mse.max() < 1e-6
    assert rows.label_hit.mean() >= 0.9


def test_most_of_a_drawn_batch_of_eight_is_recovered():
    images, labels = digits(64)
    seen = observe(images, labels, work=LocalWork(batch_size=8), spec=SPEC, weights=planted())
    for found, batch, truth in zip(
        ATTACK.reconstruct(seen, seed=0), images.split(8), labels.split(8), strict=True
    ):
        assert (scores(found, batch, truth).mse < 1e-4).sum() >= 4


def test_a_shared_bin_gives_a_mixture_and_leaves_a_grey_image():
    image, label = digits(1)
    images, labels = torch.cat([image, image.flip(-1)]), label.repeat(2)
    seen = observe(images, labels, work=LocalWork(batch_size=2), spec=SPEC, weights=planted())
    found = ATTACK.reconstruct(seen, seed=0)[0].images
    grey = [bool((one == 0.5).all()) for one in found]
    assert sorted(grey) == [False, True]


def test_a_delta_of_one_step_is_read_like_a_gradient_and_more_steps_are_refused():
    images, labels = one_a_bin(4)
    weights = planted()
    seen = observe(images, labels, work=LocalWork("delta", 4), spec=SPEC, weights=weights)
    assert scores(ATTACK.reconstruct(seen, seed=0)[0], images, labels).mse.max() < 1e-4
    steps = LocalWork("delta", 4, local_steps=2)
    assert not ATTACK.applies(observe(images, labels, work=steps, spec=SPEC, weights=weights))
    assert not ATTACK.applies(observe(images, labels))


def test_the_first_unit_sees_every_image_and_the_bins_hold_equally_many():
    public = digits(1000, seed=1)[0]
    tensors = flat_model(SPEC).layout.unflatten(planted())
    for images in (public, torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)):
        units = images.flatten(1) @ tensors["imprint.weight"].T + tensors["imprint.bias"]
        assert (units[:, 0] > 0).all()
    seen = (public.flatten(1) @ tensors["imprint.weight"].T + tensors["imprint.bias"] > 0).sum(1)
    assert seen.bincount(minlength=PLAN.bins + 1)[1:].max() < 1000 / PLAN.bins * 3


def test_only_the_imprint_layer_is_touched():
    before, after = initial_weights(SPEC), planted()
    layout = flat_model(SPEC).layout
    changed = {
        name
        for name, tensor in layout.unflatten(after).items()
        if not torch.equal(tensor, layout.unflatten(before)[name])
    }
    assert changed == {"imprint.weight", "imprint.bias"}


def test_the_server_plants_in_every_round_and_reads_what_its_clients_send(tmp_path):
    settings = load_settings(
        None,
        {"server": "imprint", "quantizers": "uniform:bits=8", "batch_size": "4"}
        | {"rounds": "2", "clients": "2", "observe": "1,2"},
    )
    trial, folder = trials_of(settings)[0], RunFolder(tmp_path)
    grid = LocalGrid(app, 2)
    train_trial(grid, trial, settings, folder, find_nodes(grid, 2), lambda: None)
    seen = [
        load_observations(round_path(folder.observations, trial.name, round_)) for round_ in (1, 2)
    ]
    layout = flat_model(trial.model_spec).layout
    first, second = (layout.unflatten(one[0].weights) for one in seen)
    assert torch.equal(first["imprint.weight"], second["imprint.weight"])
    assert torch.equal(first["imprint.bias"], second["imprint.bias"])
    assert not torch.equal(first["model.head.weight"], second["model.head.weight"])
    for observations in seen:
        found = ATTACK.reconstruct(observations, seed=0)
        assert all(one.images.isfinite().all() for one in found)
        assert recover_labels(Problems.of([[observations[0]]])).shape == (1, 4)
