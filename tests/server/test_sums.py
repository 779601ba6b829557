"""Servers that see the sum of their clients' updates alone, and tell the clients apart."""

import pytest
import torch

from attacker.presets import build_attack
from clients.app import app
from fl_sim.data import private_batch
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.observed.sums import sum_of
from fl_sim.plans import parse_plan
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import load_settings
from fl_sim.study.trials import trials_of
from fl_sim.testing import check_attack
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.gates import CONSISTENCY_TOLERANCE, Truth, examine
from results.scores.scoring import score_batch
from server.training import find_nodes, train_trial
from tests.attacker.observing import digits, initial_weights, observe

LOKI = parse_plan("loki:clients=4,bins=64")
SPEC = ModelSpec(LOKI.model("lenet"), (1, 8, 8), 10)
RELU = ModelSpec("mlp:activation=relu,width=256", (1, 8, 8), 10)
WORK = LocalWork(batch_size=4)


def clients_of(plan, spec, count=4, quantizer="none"):
    """Return what each client sends, its images, and the weights that the plan makes for all."""
    public, weights = digits(1000, seed=1)[0], initial_weights(spec).detach()
    images, labels = digits(4 * count)
    seen = []
    for place, batch in enumerate(zip(images.split(4), labels.split(4), strict=True)):
        own = plan.weights_for(place, spec, weights, public)
        facts = {"spec": spec, "weights": own, "server": plan.spec}
        seen += observe(*batch, quantizer, WORK, **facts)
    return seen, images, labels, plan.weights(spec, weights, public)


def test_the_sum_of_clients_with_the_same_weights_is_the_gradient_of_all_their_images():
    images, labels = digits(8)
    seen = observe(images, labels, work=WORK)
    total = sum_of(seen, seen[0].weights, images=8)
    (joint,) = observe(images, labels, work=LocalWork(batch_size=8))
    decode = parse_quantizer("none").decode
    torch.testing.assert_close(decode(total.payload).vector, decode(joint.payload).vector)
    steps = observe(images, labels, work=LocalWork("delta", 4, local_steps=2))
    with pytest.raises(ValueError, match="local_steps = 2"):
        sum_of(steps, steps[0].weights, images=8)


def test_a_client_changes_only_its_own_section():
    seen, *_ = clients_of(LOKI, SPEC)
    for place, one in enumerate(seen):
        vector = parse_quantizer("none").decode(one.payload).vector
        rows = flat_model(SPEC).layout.unflatten(vector)["imprint.weight"]
        live = rows.unflatten(1, (4, -1)).abs().sum(dim=(0, 2)) > 0
        assert live.tolist() == [section == place for section in range(4)]


def test_the_images_of_all_clients_are_read_off_the_sum_and_told_apart():
    seen, images, labels, common = clients_of(LOKI, SPEC)
    total = sum_of(seen, common, images=16)
    check_attack(build_attack("active_loki"), [total])
    (found,) = build_attack("active_loki").reconstruct([total], seed=0)
    shares = zip(*(part.split(4) for part in (found.images, images, labels)), strict=True)
    good = [score_batch(f, t, x, t).mse < 1e-2 for f, x, t in shares]
    assert sum(int(one.sum()) for one in good) >= 10  # images that share a bin are lost


def test_the_images_of_one_client_are_read_off_its_own_update():
    seen, images, labels, _ = clients_of(LOKI, SPEC, quantizer="uniform:bits=8")
    (found,) = build_attack("active_loki").reconstruct(seen[2:3], seed=0)
    scores = score_batch(found.images, found.labels, images[8:12], labels[8:12])
    assert (scores.mse < 1e-2).sum() >= 2


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="^the plan needs a model behind the layers of LOKI"):
        LOKI.check(ModelSpec("lenet", (1, 8, 8), 10))
    with pytest.raises(ValueError, match="^the plan needs a model in which a ReLU follows"):
        parse_plan("inconsistent(curious)").check(ModelSpec("mlp", (1, 8, 8), 10))
    with pytest.raises(ValueError, match="^the plan needs a model whose first layer"):
        parse_plan("inconsistent(traps)").check(ModelSpec("mlp", (1, 8, 8), 10))
    with pytest.raises(ValueError, match="no server 'trap'"):
        parse_plan("inconsistent(trap)")


def test_all_clients_but_the_target_are_silent_so_that_the_sum_is_the_targets_gradient():
    plan = parse_plan("inconsistent:target=1(traps:share=0.1)")
    assert plan.spec == "inconsistent:target=1(traps:share=0.1)"
    seen, images, labels, common = clients_of(plan, RELU)
    total = sum_of(seen, common, images=4)
    decode, layout = parse_quantizer("none").decode, flat_model(RELU).layout
    of_sum, of_target = (layout.unflatten(decode(one.payload).vector) for one in (total, seen[1]))
    different = {n for n, t in of_sum.items() if not torch.equal(t, of_target[n])}
    assert different == {"head.bias"}
    assert build_attack(plan.reader).applies([total])
    (found,) = build_attack(plan.reader).reconstruct([total], seed=0)
    scores = score_batch(found.images, found.labels, images[4:8], labels[4:8])
    assert (scores.mse < 1e-2).sum() >= 3


def test_a_study_sends_each_client_its_own_weights_and_keeps_them(tmp_path):
    settings = load_settings(
        None,
        {"server": "loki:clients=3,bins=32", "quantizers": "none", "batch_size": "2"}
        | {"rounds": "2", "clients": "3", "observe": "1,2"},
    )
    trial, folder = trials_of(settings)[0], RunFolder(tmp_path)
    grid = LocalGrid(app, 3)
    train_trial(grid, trial, settings, folder, find_nodes(grid, 3), lambda: None)
    layout = flat_model(trial.model_spec).layout
    for server_round in (1, 2):
        seen = load_observations(round_path(folder.observations, trial.name, server_round))
        assert build_attack("active_loki").applies(seen)
        for one in seen:
            kernels = layout.unflatten(one.weights)["kernels.weight"]
            assert kernels.flatten(1).any(dim=1).nonzero().tolist() == [[one.partition]]
            rows = layout.unflatten(parse_quantizer("none").decode(one.payload).vector)
            live = rows["imprint.weight"].unflatten(1, (3, -1)).abs().sum(dim=(0, 2)) > 0
            assert live.nonzero().tolist() == [[one.partition]]
    batches = [private_batch(trial.federation, trial.work, one.partition, 2) for one in seen]
    truth = Truth(*(torch.stack(part) for part in zip(*batches, strict=True)))
    made = build_attack("active_loki").reconstruct(seen, seed=0)
    assert examine(seen, made, truth)["inconsistency"].max() < CONSISTENCY_TOLERANCE
