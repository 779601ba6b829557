"""A study in which the server plants in some rounds alone."""

import pytest
import torch

from clients.app import app
from fl_sim.engines.grids import LocalGrid
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.plans import plants_in
from fl_sim.study.runs import RunFolder, training_key
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.study.trials import attack_groups, trials_of
from server.training import find_nodes, train_trial

ROUNDS = (1, 2, 3, 4)


def study(**changes):
    """Return the settings of a study of four rounds, all observed, and its trial."""
    settings = load_settings(
        None,
        {"model": "mlp:activation=relu", "server": "traps:share=0.1", "quantizers": "none"}
        | {"rounds": "4", "observe": "1,2,3,4", "clients": "2", "limit": "60"}
        | {"server_momentum": "0.9", "fixed_batch": "true"}
        | changes,
    )
    return settings, trials_of(settings)[0]


def train(root, **changes):
    """Train a study; return its losses from round 0 on, and what the server observed by round."""
    (settings, trial), folder, grid = study(**changes), RunFolder(root), LocalGrid(app, 2)
    history = train_trial(grid, trial, settings, folder, find_nodes(grid, 2), lambda: None)
    seen = {
        one: load_observations(round_path(folder.observations, trial.name, one)) for one in ROUNDS
    }
    return [row["loss"] for row in history], seen


def test_one_round_in_so_many_is_planted_and_the_first_is():
    assert [one for one in range(1, 8) if plants_in(one, 3)] == [1, 4, 7]
    assert all(plants_in(one, 1) for one in ROUNDS)


def test_planted_rounds_train_nothing_and_the_others_train_as_if_these_had_not_been(tmp_path):
    losses, seen = train(tmp_path / "planted", plant_every="2")
    assert losses[0] == losses[1] != losses[2] == losses[3] != losses[4]
    assert [seen[one][0].server for one in ROUNDS] == ["traps:share=0.1", "curious"] * 2
    honest, _ = train(tmp_path / "honest", server="curious")  # clients repeat their images
    assert losses[2::2] == honest[1:3]
    first, second, third, _ = (seen[one][0].weights for one in ROUNDS)
    assert not torch.equal(first, second)
    assert not torch.equal(first, third)  # of which one layer is planted, the others trained


def test_every_round_is_planted_unless_asked(tmp_path):
    losses, seen = train(tmp_path)
    assert len(set(losses)) == 5
    assert {seen[one][0].server for one in ROUNDS} == {"traps:share=0.1"}


def test_planted_rounds_are_attacked_apart_from_the_others():
    assert attack_groups(study()[1], study()[0]) == (ROUNDS,)
    settings, trial = study(plant_every="2")
    assert attack_groups(trial, settings) == ((1, 3), (2, 4))
    settings, trial = study(plant_every="2", server="curious")
    assert attack_groups(trial, settings) == (ROUNDS,)


def test_a_training_that_is_planted_otherwise_does_not_stand():
    keys = [training_key(trial, settings) for settings, trial in (study(), study(plant_every="2"))]
    assert keys[0] != keys[1]


def test_no_round_in_one_is_refused_in_one_line():
    with pytest.raises(SettingsError, match=r"^(training\.)?plant_every = [^\n]*greater than or"):
        study(plant_every="0")
