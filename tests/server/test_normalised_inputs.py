"""Server plans where clients normalise what their model sees."""

import pytest
import torch

from attacker.presets import build_attack
from fl_sim.models import ModelSpec
from fl_sim.plans import parse_plan, planted_weights
from fl_sim.plans.inputs import onto_inputs, onto_pixels
from fl_sim.study.settings import SettingsError, parse_settings
from fl_sim.updates.local_update import LocalWork, flat_model
from results.scores.scoring import score_batch
from server import Malicious
from server.app import check_data
from tests.attacker.observing import digits, initial_weights, observe
from tests.commands import command

RELU = "mlp:activation=relu,width=256"
PLANS = {
    "imprint:bins=128": "lenet",
    "traps:share=0.1": RELU,
    "thresholds:reads=values,levels=10": "cnn",
    "inconsistent(traps:share=0.1)": RELU,
}
NORMALISED = {"mean": (0.3,), "std": (0.4,)}


def spec_of(plan, colours=1):
    return ModelSpec(parse_plan(plan).model(PLANS[plan]), (colours, 8, 8), 10)


def sent(plan, spec, work, client=None):
    public = digits(400, seed=1)[0].expand(-1, spec.shape[0], -1, -1)
    return planted_weights(parse_plan(plan), work, spec, initial_weights(spec), public, client)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    ("mean", "std"), [((0.3,), (0.4,)), ((0.5, 0.2, 0.1), (0.25, 0.3, 2.0)), ((-1.0,), (0.01,))]
)
def test_the_first_layer_does_to_inputs_what_it_would_do_to_pixels(plan, mean, std):
    spec = spec_of(plan, 3)
    plain, work = LocalWork(), LocalWork(mean=mean, std=std)
    images = torch.rand(5, *spec.shape, generator=torch.Generator().manual_seed(0))
    of_pixels, of_inputs = sent(plan, spec, plain), sent(plan, spec, work)
    layer = parse_plan(plan).first_layer(spec)
    assert torch.equal(onto_inputs(of_pixels, work, spec, layer), of_inputs)
    torch.testing.assert_close(onto_pixels(of_inputs, work, spec, layer), of_pixels)
    if "imprint" not in plan:  # which adds to the picture: the rest of the model sees inputs
        flat = flat_model(spec)
        logits = flat.logits(of_inputs, work.inputs(images))
        torch.testing.assert_close(logits, flat.logits(of_pixels, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plan", [*PLANS, "fishing:target=3"])
def test_planting_again_changes_nothing(plan):
    spec = ModelSpec(parse_plan(plan).model(PLANS.get(plan, "lenet")), (1, 8, 8), 10)
    work, public = LocalWork(**NORMALISED), digits(400, seed=1)[0]
    facts = parse_plan(plan), work, spec
    once = planted_weights(*facts, initial_weights(spec), public)
    assert torch.equal(once, planted_weights(*facts, once.clone(), public))


@pytest.mark.parametrize("plan", [plan for plan in PLANS if "inconsistent" not in plan])
def test_images_are_read_as_well_from_inputs_as_from_pixels(plan):
    images, labels = digits(8)
    spec, found = spec_of(plan), []
    for more in ({}, NORMALISED):
        work = LocalWork(batch_size=8, **more)
        facts = {"spec": spec, "weights": sent(plan, spec, work), "server": plan}
        (seen,) = observe(images, labels, "none", work, **facts)
        attack = build_attack(parse_plan(plan).reader)
        assert attack.applies([seen])
        (read,) = attack.reconstruct([seen], seed=0)
        found.append(score_batch(read.images, read.labels, images, labels))
    plain, normalised = found
    assert (plain.mse < 1e-6).mean() >= 0.5
    assert (normalised.mse < 1e-6).sum() >= (plain.mse < 1e-6).sum()
    assert normalised.label_hit.sum() >= plain.label_hit.sum() - 1


@pytest.mark.parametrize("model", [RELU, "cnn"])
def test_ares_measures_inputs_and_reads_pixels(model):
    images, labels = digits(4)
    spec, errors = ModelSpec(model, (1, 8, 8), 10), []
    for more in ({}, NORMALISED):
        work = LocalWork(batch_size=4, **more)
        facts = {"spec": spec, "weights": sent("ares", spec, work), "server": "ares"}
        (read,) = build_attack("active_ares").reconstruct(
            observe(images, labels, "none", work, **facts), seed=0
        )
        errors.append(float(score_batch(read.images, read.labels, images, labels).mse.median()))
    assert max(errors) < 1e-3


def test_signs_of_normalised_inputs_are_read():
    images, labels = digits(8)
    spec, work = ModelSpec("cnn", (1, 8, 8), 10), LocalWork(batch_size=8, **NORMALISED)
    public = digits(400, seed=1)[0]
    weights = planted_weights(parse_plan("thresholds"), work, spec, initial_weights(spec), public)
    (seen,) = observe(images, labels, "sign", work, spec=spec, weights=weights, server="thresholds")
    (read,) = build_attack("active_thresholds").reconstruct([seen], seed=0)
    scores = score_batch(read.images, read.labels, images, labels)
    assert (scores.mse < 1e-2).mean() >= 0.8


def test_fishing_takes_its_quantiles_from_inputs():
    spec, public = ModelSpec("lenet", (1, 8, 8), 10), digits(400, seed=1)[0]
    plan, work = parse_plan("fishing:target=3,share=0.25"), LocalWork(**NORMALISED)
    weights = planted_weights(plan, work, spec, initial_weights(spec), public)
    caught = plan.silence(spec, weights, work.inputs(public)) < 0
    assert float(caught.float().mean()) == pytest.approx(0.25, abs=0.01)


def test_a_planted_study_of_normalised_inputs_gives_a_table(tmp_path, capsys):
    given = f"--server traps --attacks active_traps --model {RELU} --quantizers none".split()
    given += ["--normalize-mean", "0.3", "--normalize-std", "0.4"]
    given += ["--clients", "3", "--rounds", "2", "--victims", "2", "--batch-size", "4"]
    assert command(*given, "--out", tmp_path / "run", "--quiet") == 0
    assert "leaks" in capsys.readouterr().out


def test_a_server_that_needs_pixels_is_refused_in_one_line(tmp_path):
    training = {"normalize_mean": 0.5, "normalize_std": 1}
    with pytest.raises(SettingsError, match=r"^normalize_mean = '0\.5': none, as the server loki"):
        check_data(parse_settings({"server": "loki", "training": training}))
    with pytest.raises(ValueError, match=r"^plan = 'inconsistent\(loki\)': it needs pixels"):
        Malicious(
            None,
            "inconsistent(loki)",
            model=ModelSpec("loki(mlp:activation=relu)", (1, 8, 8), 10),
            public=digits(50)[0],
            store=tmp_path,
            work=LocalWork(**NORMALISED),
        )
