"""A bank of thresholds: what is planted, and what its reader reads through quantizers."""

import pytest
import torch

from attacker.matching.labels import recover_labels
from attacker.matching.problems import Problems
from attacker.presets import build_attack
from attacker.readers.synthetic import synthetic_images
from attacker.readers.thresholds import _left_of_unions, _Pattern, without_noise
from clients.app import app
from fl_sim import register
from fl_sim.engines.grids import LocalGrid
from fl_sim.models import ModelSpec, build_model
from fl_sim.observed.evidence import HeldBack
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.plans import Thresholds, parse_plan
from fl_sim.plans.chain import find_chain
from fl_sim.quantizers.catalogue import EXAMPLES
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.study.trials import trials_of
from fl_sim.testing import check_server_plan
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.scoring import score_batch
from server.app import check_data
from server.training import find_nodes, train_trial
from tests.attacker.observing import digits, initial_weights, observe

SPEC = ModelSpec("cnn", (1, 8, 8), 10)
ATTACK = build_attack("active_thresholds")
VALUES = "thresholds:reads=values,levels=10"


def seen_of(images, labels, quantizer, plan, **work):
    """Return what is observed of clients that train with planted weights."""
    parsed = parse_plan(plan)
    weights = parsed.weights(SPEC, initial_weights(SPEC), digits(1000, seed=1)[0])
    work = LocalWork(batch_size=parsed.batch, **work)
    return observe(images, labels, quantizer, work=work, spec=SPEC, weights=weights)


def errors(quantizer, plan="thresholds", count=16, **work):
    """Return the scores of all images, and of how many clients."""
    images, labels = digits(count)
    seen = seen_of(images, labels, quantizer, plan, **work)
    found = ATTACK.reconstruct(seen, seed=0)
    size = len(found[0].labels)
    truth = zip(found, images.split(size), labels.split(size), strict=True)
    rows = [score_batch(one.images, one.labels, x, y) for one, x, y in truth]
    return torch.tensor([mse for row in rows for mse in row.mse])


@pytest.mark.parametrize("plan", ["thresholds", VALUES, "thresholds:dither=none,batch=1"])
def test_the_plan_keeps_what_every_plan_promises(plan):
    check_server_plan(plan, "cnn")


def test_the_three_layers_are_found_by_what_they_compute():
    chain = find_chain(SPEC)
    assert (chain.first.weight, chain.head.bias) == ("body.0.weight", "head.bias")
    assert find_chain(ModelSpec("lenet", (1, 8, 8), 10)) is None
    assert find_chain(ModelSpec("mlp", (1, 8, 8), 10)) is None


@register("model", "cnn_with_tanh")
def with_tanh(spec):
    module = build_model(ModelSpec("cnn", spec.shape, spec.classes))
    module.body[4] = torch.nn.Tanh()
    return module


def test_a_chain_with_another_activation_is_refused():
    assert find_chain(ModelSpec("cnn_with_tanh", (1, 8, 8), 10)) is None


@pytest.mark.parametrize(
    ("model", "server", "told"),
    [
        ("lenet", "thresholds", "convolution - ReLU - linear"),
        ("cnn", "thresholds:levels=34", "at most 33 levels"),
    ],
)
def test_a_model_that_the_plan_cannot_use_is_refused_before_work_starts(model, server, told):
    settings = load_settings(None, {"model": model, "server": server})
    with pytest.raises(SettingsError, match=f"server = '{server}': .*{told}"):
        check_data(settings)


def test_about_one_image_of_a_batch_passes_a_unit():
    images, _ = digits(400)
    weights = Thresholds().weights(SPEC, initial_weights(SPEC), digits(1000, seed=1)[0])
    model = flat_model(SPEC)
    tensors = model.layout.unflatten(weights)
    features = torch.nn.functional.conv2d(
        images, tensors["body.0.weight"], tensors["body.0.bias"], padding="same"
    )
    answers = features.relu().flatten(1) @ tensors["body.3.weight"].T + tensors["body.3.bias"]
    passed = (answers > 0).float().mean(dim=0) * 8
    assert 0.8 < passed.mean() < 1.4


@pytest.mark.parametrize("quantizer", ["sign", "scaled_sign", "error_feedback(sign)", "none"])
def test_signs_alone_tell_the_images_of_a_batch_of_eight(quantizer):
    found = errors(quantizer, "thresholds:levels=16")
    assert (found < 1e-2).float().mean() >= 0.8


@pytest.mark.parametrize(
    ("quantizer", "plan", "share"),
    [
        ("none", VALUES, 0.8),
        ("uniform:bits=4", VALUES, 0.8),
        ("stochastic:bits=4", VALUES, 0.8),
        ("topk:keep=0.1", "thresholds:reads=values,levels=1", 0.5),
    ],
)
def test_values_tell_more_where_they_are_left(quantizer, plan, share):
    assert (errors(quantizer, plan) < 1e-2).float().mean() >= share


COARSE = "thresholds:reads=values,levels=10,rate=0.5,floor=-0.5"


@pytest.mark.parametrize(
    ("quantizer", "plan"),
    [
        ("sign", "thresholds:reads=signs"),
        ("scaled_sign", "thresholds:reads=signs"),
        ("error_feedback(sign)", "thresholds:reads=signs"),
        ("none", VALUES),
        ("uniform:bits=4", VALUES),
        ("stochastic:bits=4", VALUES),
        ("gaussian:sigma=0.01", VALUES),
        ("drive", VALUES),
        ("clip:norm=1", VALUES),
        ("absmax:bits=4", COARSE),
        ("mixed:first=8,rest=2", "thresholds:reads=values,levels=10,rate=0.25,floor=-0.75"),
        ("terngrad", "thresholds:reads=values,levels=10,rate=0.5"),
        ("topk:keep=0.1", "thresholds:reads=values,levels=1"),
        ("topk:keep=0.01+stochastic:bits=2", "thresholds:reads=values,levels=1"),
        ("error_feedback(topk:keep=0.1)", "thresholds:reads=values,levels=1"),
    ],
)
def test_the_plan_is_chosen_from_the_quantizer(quantizer, plan):
    assert parse_plan("thresholds").for_quantizer(quantizer).spec == plan
    inner = parse_plan("inconsistent:target=1(thresholds)").for_quantizer(quantizer)
    assert inner.spec == f"inconsistent:target=1({plan})"


@pytest.mark.parametrize("quantizer", EXAMPLES)
def test_a_plan_is_chosen_for_every_quantizer(quantizer):
    plan = parse_plan("thresholds").for_quantizer(quantizer)
    assert plan.reads != "auto"
    assert plan.for_quantizer("sign") == plan
    assert parse_plan("traps").for_quantizer(quantizer) == parse_plan("traps")


def test_what_is_set_by_hand_is_kept():
    assert parse_plan("thresholds:levels=5,batch=32").for_quantizer("none").spec == (
        "thresholds:reads=values,levels=5,batch=32"
    )
    assert parse_plan("thresholds:reads=signs").for_quantizer("none").reads == "signs"


@pytest.mark.parametrize("quantizer", ["scaled_sign", "uniform:bits=4"])
def test_a_study_carries_out_the_plan_that_suits_its_quantizer(quantizer, tmp_path):
    settings = load_settings(
        None,
        {
            "quantizers": quantizer,
            "model": "cnn",
            "server": "thresholds:levels=7",
            "clients": 1,
            "limit": 40,
            "rounds": 1,
            "batch_size": 2,
        },
    )
    (trial,) = trials_of(settings)
    folder, grid = RunFolder(tmp_path), LocalGrid(app, 1)
    train_trial(grid, trial, settings, folder, find_nodes(grid, 1), lambda: None)
    (seen,) = load_observations(round_path(folder.observations, trial.name, 1))
    assert seen.server == trial.plan.spec
    assert f"reads={'signs' if quantizer == 'scaled_sign' else 'values'}" in seen.server
    public = trial.federation.splits.public.pixels()
    assert torch.equal(seen.weights, trial.plan.weights(trial.model_spec, seen.weights, public))
    assert ATTACK.applies([seen])


def test_unquantized_values_are_exact():
    assert errors("none", VALUES).median() < 1e-6


def test_several_local_steps_add_up():
    spec = ModelSpec("cnn", (3, 24, 24), 10)
    images, labels = synthetic_images(spec.shape, 8, seed=3), torch.arange(8)
    plan = parse_plan("thresholds:slope=1e-8")
    public = synthetic_images(spec.shape, 200, seed=1)
    weights = plan.weights(spec, initial_weights(spec), public)
    work = LocalWork("delta", batch_size=8, learning_rate=0.1, local_steps=5)
    (found,) = ATTACK.reconstruct(
        observe(images, labels, "sign", work=work, spec=spec, weights=weights), seed=0
    )
    scores = score_batch(found.images, found.labels, images, labels)
    assert (scores.mse < 1e-2).mean() >= 0.5


def test_elements_that_are_held_back_are_not_read():
    images, labels = digits(8)
    seen = seen_of(images, labels, "sign", "thresholds:levels=16")
    (found,) = ATTACK.reconstruct([o.hold_back(HeldBack()) for o in seen], seed=0)
    assert (score_batch(found.images, found.labels, images, labels).mse < 1e-2).mean() >= 0.7


def test_labels_are_those_of_the_images():
    images, labels = digits(8)
    seen = seen_of(images, labels, "sign", "thresholds:levels=16")
    (found,) = ATTACK.reconstruct(seen, seed=0)
    assert torch.equal(recover_labels(Problems.of([seen]))[0], found.labels)
    rows = score_batch(found.images, found.labels, images, labels)
    assert rows.label_hit[rows.mse < 1e-2].all()


def test_only_planted_weights_are_read():
    images, labels = digits(1)
    assert not ATTACK.applies(observe(images, labels, spec=SPEC, weights=initial_weights(SPEC)))
    assert not ATTACK.applies(observe(images, labels))
    assert ATTACK.applies(seen_of(images, labels, "sign", "thresholds:batch=1"))


def test_noise_is_taken_out_of_smooth_images():
    rng = torch.Generator().manual_seed(0)
    smooth = torch.linspace(0, 1, 16).expand(3, 16, 16)
    noisy = smooth + 0.2 * torch.randn(smooth.shape, generator=rng)
    clean = without_noise(noisy, 0.04)
    assert (clean - smooth).square().mean() < 0.3 * (noisy - smooth).square().mean()
    assert torch.equal(without_noise(smooth, 0.0), smooth)


def test_what_a_union_holds_beside_a_known_image_is_read():
    one, other = (torch.tensor([[low]]) for low in ([3, 1, 0, 2], [1, 2, 0, 4]))
    known = _Pattern(one, one + 1, label=5)
    both, labels = torch.maximum(one, other), torch.zeros(10, dtype=torch.bool)
    labels[[5, 7]] = True
    (left,) = _left_of_unions([known], [(both, both + 1, labels)])
    assert left.label == 7
    assert (left.low <= other).all()
    assert (left.high > other).all()
    told = one[0, 0] < other[0, 0]
    assert (left.high - left.low)[0, 0][told].eq(1).all()
    labels[8] = True  # two images beside the known one
    assert _left_of_unions([known], [(both, both + 1, labels)]) == []
