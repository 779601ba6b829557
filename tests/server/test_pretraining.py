import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fl_sim.data import load_splits
from fl_sim.models import ModelSpec, build_model
from fl_sim.models.weights import digest_of, load_weights, read_weights, write_weights
from fl_sim.study.runs import training_key
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.study.study import load_study, read_study
from fl_sim.study.trials import trials_of
from server.app import check_data
from server.pretraining import Pretraining, Recipe, augment
from server.training import initial_state
from tests.commands import command

SHORT = Recipe(epochs=3, batch_size=64, crop=1, flip=False)
DIGITS = ModelSpec("mlp", (1, 8, 8), 10)


def pretraining(out, recipe=SHORT, model="convnet:width=8,norm=batch", **values):
    settings = load_settings(None, {"model": model, **values})
    return Pretraining(settings, load_splits(settings.data, 0), recipe, out)


def go_on(*_):
    """Advance no bar."""


class KilledError(Exception):
    pass


def killed_after(steps):
    left = iter(range(steps))

    def advance(count=1, doing=None):
        if doing is not None and next(left, None) is None:
            raise KilledError

    return advance


def test_a_network_is_trained_and_its_card_says_what_it_is(tmp_path):
    training = pretraining(tmp_path / "net.safetensors", normalize_mean="0.3", normalize_std="0.3")
    card = training.run(go_on)
    assert card == training.card() == json.loads((tmp_path / "net.json").read_text())
    assert card["test_accuracy"] > 0.7
    assert [card["training_images"], card["test_images"]] == [1438, 359]
    assert len(card["epochs"]) == SHORT.epochs
    tensors = load_file(tmp_path / "net.safetensors")
    assert card["digest"] == digest_of(tensors)
    assert tensors.keys() == build_model(training.spec).state_dict().keys()
    assert not training.checkpoint_file.exists()


def test_what_was_killed_continues_and_ends_as_if_it_had_not_been(tmp_path):
    whole = pretraining(tmp_path / "whole.safetensors").run(go_on)
    training = pretraining(tmp_path / "killed.safetensors")
    with pytest.raises(KilledError):
        training.run(killed_after(2 * training.steps + 1))
    assert training.card() is None
    again = pretraining(tmp_path / "killed.safetensors")
    seen = []
    card = again.run(lambda steps=1, doing=None: seen.append(steps))
    assert seen[0] == 2 * training.steps
    assert card["digest"] == whole["digest"]
    assert card["epochs"] == whole["epochs"]


def test_other_settings_touch_neither_weights_nor_checkpoint(tmp_path):
    out = tmp_path / "net.safetensors"
    other = replace(SHORT, learning_rate=0.1)
    with pytest.raises(KilledError):
        pretraining(out).run(killed_after(25))
    with pytest.raises(SettingsError, match=r"net.checkpoint.*other settings or data; add --force"):
        pretraining(out, other).run(go_on)
    pretraining(out).run(go_on)
    with pytest.raises(SettingsError, match="exists with other settings; add --force"):
        pretraining(out, other).card()
    pretraining(out, other).delete()
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="model = 'vit:patch=5': patch=5 does not divide"):
        pretraining(tmp_path / "net.safetensors", model="vit:patch=5")
    with pytest.raises(SettingsError, match="3 means and deviations cannot normalise 1 channels"):
        pretraining(tmp_path / "n", normalize_mean="0.1,0.2,0.3", normalize_std="1,1,1")


def test_the_command_line_trains_once_and_a_study_starts_from_it(tmp_path, capsys):
    out, run = tmp_path / "net.safetensors", tmp_path / "run"
    asked = ("pretrain", out, "--model", "mlp", "--epochs", "1", "--quiet")
    assert command(*asked) == 0
    assert "net.safetensors: test accuracy" in (first := capsys.readouterr().out)
    assert command(*asked) == 0
    assert capsys.readouterr().out == first
    small = "--rounds 1 --clients 2 --victims 1 --attacks dlg:iterations=1 --quantizers none"
    study = ("--model", "mlp", "--initial-weights", out, "--out", run, "--workers", "1")
    assert command(*small.split(), *study) == 0
    digest = json.loads((tmp_path / "net.json").read_text())["digest"]
    settings = json.loads((run / "card.json").read_text())["settings"]
    assert settings["initial_weights"] == digest
    assert f"from weights {digest}" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.pt"], "out = 'net.pt': a name that ends in .safetensors"),
        (["n.safetensors", "--epochs", "0"], "0 is not in the range x>=1"),
        (["n.safetensors", "--seed", "1,2"], "seed = '1,2': one number"),
        (["n.safetensors", "--model", "lenett"], "did you mean 'lenet'"),
        (["n.safetensors", "--normalize-mean", "0.5"], "normalize_std"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    assert command("pretrain", *arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


@given(crop=st.integers(1, 3), flip=st.booleans(), seed=st.integers(0, 99))
def test_augmented_images_are_shifted_or_mirrored_ones(crop, flip, seed):
    images = 1 + torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
    found = augment(
        images, replace(SHORT, crop=crop, flip=flip), torch.Generator().manual_seed(seed)
    )
    assert found.shape == images.shape
    around = torch.nn.functional.pad(images, (crop,) * 4)
    for one, padded in zip(found, around, strict=True):
        windows = [
            padded[:, row : row + 4, column : column + 5]
            for row in range(2 * crop + 1)
            for column in range(2 * crop + 1)
        ]
        allowed = windows + ([window.flip(-1) for window in windows] if flip else [])
        assert any(torch.equal(one, window) for window in allowed)


def test_nothing_is_changed_without_crops_and_flips():
    images = torch.rand(3, 1, 4, 4)
    plain = replace(SHORT, crop=0, flip=False)
    assert torch.equal(augment(images, plain, torch.Generator()), images)


@given(steps=st.integers(4, 500))
def test_the_step_size_rises_to_its_highest_and_falls_almost_to_zero(steps):
    recipe = Recipe(learning_rate=0.3)
    rates = [recipe.rate(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < min(rates) <= 0.3 * 4 / steps
    assert max(rates) <= 0.3 + 1e-9


def settings_of(path, **values):
    tree = {"model": "mlp", "quantizers": "none", "initial_weights": str(path), **values}
    return load_settings(None, tree)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "mlp.safetensors"
    write_weights(path, build_model(DIGITS, seed=7))
    return path


@pytest.mark.parametrize("server", ["curious", "imprint:bins=8"])
def test_trials_start_from_the_file_whatever_the_server_adds(weights, server):
    (trial,) = trials_of(settings_of(weights, server=server))
    found, _ = initial_state(trial, weights)
    expected = torch.cat([p.detach().flatten() for p in build_model(DIGITS, seed=7).parameters()])
    assert torch.equal(found[-len(expected) :], expected)
    assert not torch.equal(initial_state(trial, None)[0][-len(expected) :], expected)


def test_a_study_may_start_from_several_files_and_from_drawn_weights(weights, tmp_path):
    file = tmp_path / "study.toml"
    text = f'initial_weights = ["", "{weights}"]\nmodel = "mlp"\nquantizers = ["none"]\n'
    rule = '[[exclude]]\ninitial_weights = ""\nquantizers = "sign"\n'  # written back as it is read
    file.write_text(text + rule)
    study = load_study(file, {})
    assert [point.settings.initial_weights for point in study.points] == [None, weights]
    assert [point.name.partition("-")[0] for point in study.points] == [
        "initial_weights=none",
        "initial_weights=mlp.safetensors",
    ]
    folders = study.create(tmp_path / "run")
    assert [one.root.parent for one in folders] == [tmp_path / "run"] * 2
    assert read_study(tmp_path / "run") == study


def test_running_statistics_are_read_too(tmp_path):
    spec = ModelSpec("convnet:width=8,norm=batch", (1, 8, 8), 10)
    module = build_model(spec)
    for name, buffer in module.named_buffers():
        if name.endswith("mean"):
            buffer.fill_(3)
    path = tmp_path / "net.safetensors"
    write_weights(path, module)
    (trial,) = trials_of(settings_of(path, model=spec.name, batch_size="4"))
    statistics = initial_state(trial, path)[1]
    assert statistics.numel() == 2 * (8 + 16 + 32)
    assert int((statistics == 3).sum()) == 8 + 16 + 32


def test_the_tensors_of_the_file_are_part_of_a_trainings_key_and_its_place_is_not(
    weights, tmp_path
):
    def key(path):
        settings = settings_of(path)
        return training_key(trials_of(settings)[0], settings)

    other = tmp_path / "elsewhere.safetensors"
    save_file(load_file(weights), other)
    assert key(other) == key(weights)
    write_weights(other, build_model(DIGITS, seed=8))
    assert key(other) != key(weights)
    plain = load_settings(None, {"model": "mlp", "quantizers": "none"})
    assert training_key(trials_of(plain)[0], plain) != key(weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "has no tensor 'head.bias', which the model has"),
        (lambda t: t.update(more=torch.zeros(1)), "has a tensor 'more', which the model has not"),
        (
            lambda t: t.update({"head.bias": torch.zeros(3)}),
            r"has a tensor 'head.bias' of shape \(3,\), and \(10,\) in the model",
        ),
        (
            lambda t: t["head.bias"].fill_(float("nan")),
            "'head.bias' with values that are not finite",
        ),
    ],
)
def test_tensors_of_another_model_are_refused_in_one_line(weights, change, message):
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    with pytest.raises(SettingsError, match=message) as caught:
        check_data(settings_of(weights))
    assert str(caught.value).startswith(f"initial_weights = '{weights}': ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(SettingsError, match=r"initial_weights = .* cannot be read as safetensors"):
        check_data(settings_of(path))
    path.write_bytes(b"nothing")
    with pytest.raises(SettingsError, match=r"initial_weights = .* cannot be read as safetensors"):
        check_data(settings_of(path))


def test_weights_survive_a_file_to_the_bit(weights):
    module, again = build_model(DIGITS, seed=7), build_model(DIGITS, seed=8)
    load_weights(again, read_weights(weights))
    assert digest_of(again.state_dict()) == digest_of(module.state_dict())
