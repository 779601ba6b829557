"""Secure aggregation: sums are right or missing, and nothing but the sum is kept."""

import logging
from math import prod

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import nn

from attacker.presets import build_attack
from clients.app import app
from fl_sim.data import private_batch
from fl_sim.engines.grids import LocalGrid
from fl_sim.exchange.secure import is_protocol, parse_aggregation, unmasked
from fl_sim.observed.observations import load_observations, round_path
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import register
from fl_sim.study.runs import RunFolder
from fl_sim.study.settings import SettingsError, load_settings
from fl_sim.study.trials import trials_of
from results.reading.attacked import Attacked
from results.reading.guarantees import identified_bound
from results.scores.rows import OBSERVATION, VICTIM
from results.scores.victims import score_victims
from server.app import check_data
from server.strategies.reception import RoundFailedError
from server.training import find_nodes, train_trial

CLIENTS = 5
STEP = parse_aggregation("secagg+").step


def train(root, aggregation="secagg+", quantizer="none", client_app=app, **more):
    """Train one round; return trial, history and what the server observed."""
    given = {"quantizers": quantizer, "aggregation": aggregation, "clients": str(CLIENTS)}
    given |= {"limit": "100", "model": "mlp:width=4", "rounds": "1", "batch_size": "2"} | more
    settings = load_settings(None, given)
    trial, folder = trials_of(settings)[0], RunFolder(root / aggregation)
    grid = LocalGrid(client_app, settings.data.clients)
    nodes = find_nodes(LocalGrid(app, settings.data.clients), settings.data.clients)
    history = train_trial(grid, trial, settings, folder, nodes, lambda: None)
    return trial, history, load_observations(round_path(folder.observations, trial.name, 1))


def decoded(seen):
    return torch.stack([parse_quantizer(o.payload.spec).decode(o.payload).vector for o in seen])


def failing(partitions, when):
    """Return an app that raises at some clients, on messages for which ``when`` is true."""

    def answer(message, context):
        if context.node_config["partition-id"] in partitions and when(message):
            raise RuntimeError("the client went away")
        return app(message, context)

    return answer


def asks_for_values(message: Message):
    return is_protocol(message) and "config" in message.content


@pytest.mark.parametrize("quantizer", ["none", "stochastic:bits=4"])
def test_the_server_keeps_the_sum_alone_and_it_is_the_plain_one(tmp_path, quantizer):
    more = {"quantizer": quantizer, "clients": "8", "limit": "200"}
    _, plain_history, plain = train(tmp_path, "plain", **more)
    _, history, (total,) = train(tmp_path, **more)
    error = decoded([total])[0] - decoded(plain).mean(dim=0)
    assert 0 < error.abs().max() < STEP
    assert total.clients == tuple(range(8))
    assert total.work.batch_size == 16
    assert len(plain) == history[1]["updates"] == 8
    masked = 8 * (total.payload.layout.size + 2)  # 64 bits an element, a factor and a check
    assert history[1]["uplink_bytes"] > 8 * masked > plain_history[1]["uplink_bytes"]


def test_the_sum_is_the_same_whatever_the_masks_and_the_global_random_state_is_left_alone(tmp_path):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    _, _, (first,) = train(tmp_path / "a")
    assert np.array_equal(np.random.get_state()[1], before)
    _, _, (again,) = train(tmp_path / "b")
    assert first.payload.body == again.payload.body


@pytest.mark.parametrize(
    "when", [is_protocol, asks_for_values], ids=["before keys are shared", "in training"]
)
def test_a_client_that_fails_is_not_in_the_sum(tmp_path, caplog, when):
    _, _, plain = train(tmp_path, "plain")
    with caplog.at_level(logging.WARNING, "fl_sim.server"):
        _, history, (total,) = train(tmp_path, client_app=failing({2}, when))
    assert total.clients == (0, 1, 3, 4)
    kept = decoded([one for one in plain if one.partition != 2])
    assert (decoded([total])[0] - kept.mean(dim=0)).abs().max() < STEP
    assert (history[1]["updates"], history[1]["dropped"]) == (4, 1)
    warned = [one for one in caplog.records if one.levelno >= logging.WARNING]
    (line,) = [one.getMessage() for one in warned]
    assert "dropped the reply of partition 2: the client failed" in line


@pytest.mark.parametrize(
    "when", [is_protocol, asks_for_values], ids=["before keys are shared", "in training"]
)
def test_with_too_few_clients_there_is_no_sum_and_the_round_fails(tmp_path, caplog, when):
    with pytest.raises(RoundFailedError, match="none of 5 clients"):
        train(tmp_path, client_app=failing({1, 2}, when))
    lines = [one.getMessage() for one in caplog.records if "no sum" in one.getMessage()]
    assert lines == [
        "trial none_seed-0: there is no sum: 3 of 5 clients stayed to the end, and 4 are needed"
    ]


def test_masks_that_are_left_over_are_noticed():
    plan = parse_aggregation("secagg+")
    assert unmasked(np.array([0.5, plan.clip]), plan).tolist() == [0.5]
    assert unmasked(np.array([0.5, plan.clip + STEP]), plan) is None


def test_a_client_sends_no_update_of_its_own_where_the_study_says_sums(tmp_path, monkeypatch):
    monkeypatch.setattr("server.training.SecureGrid", lambda grid, *_: grid)
    with pytest.raises(RoundFailedError):
        train(tmp_path)


def test_values_beyond_the_clip_are_clipped(tmp_path):
    _, _, (total,) = train(tmp_path, "secagg+:clip=0.001")
    assert decoded([total]).abs().max() == pytest.approx(0.001)


def test_the_images_of_a_sum_are_victims_of_their_clients(tmp_path):
    trial, _, seen = train(tmp_path, quantizer="clip:norm=1+gaussian:sigma=1")
    assert len(seen[0].clients) == CLIENTS
    made = build_attack("dlg:iterations=2,restarts=0").reconstruct(seen, seed=0)
    truth = Attacked(trial, 1, "dlg", seen, made).truth
    assert truth.images.shape[:2] == (1, 10)
    public = trial.federation.splits.public.pixels()
    scores = score_victims(seen, made, truth, public)
    scores["seed"] = 0
    assert not scores.duplicated(VICTIM).any()
    assert len(scores[OBSERVATION].drop_duplicates()) == 1
    for row in scores.itertuples():
        images, labels = private_batch(trial.federation, trial.work, row.partition, 1)
        assert labels[row.image] == row.true_label
        place = seen[0].clients.index(row.partition) * 2 + row.image
        assert torch.equal(truth.images[0, place], images[row.image])
    victims = scores[[*VICTIM, "cohort"]]
    of_sum = identified_bound(trial.quantizer, 100, 1, victims, [trial])
    alone = victims.assign(cohort=victims["partition"])
    assert of_sum >= identified_bound(trial.quantizer, 100, 1, alone, [trial])


def test_of_unquantized_sums_the_truth_is_consistent_and_of_others_it_is_not(tmp_path):
    for quantizer, consistent in (("none", True), ("sign", False), ("gaussian:sigma=0.1", True)):
        trial, _, seen = train(tmp_path / quantizer, quantizer=quantizer)
        made = build_attack("dlg:iterations=1,restarts=0").reconstruct(seen, seed=0)
        truth = Attacked(trial, 1, "dlg", seen, made).truth
        scores = score_victims(seen, made, truth, trial.federation.splits.public.pixels())
        assert (scores["inconsistency"] < 1e-5).all() == consistent


def test_parameters_travel_with_the_trial():
    settings = load_settings(None, {"aggregation": "secagg+:threshold=0.9", "quantizers": "none"})
    (trial,) = trials_of(settings)
    assert trial.from_json(trial.to_json()) == trial
    assert trial.aggregation.needed(10) == 9
    assert parse_aggregation("plain") is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"aggregation": "secagg"}, "aggregation = 'secagg': give plain or secagg\\+"),
        ({"aggregation": "secagg+:clip=0"}, "clip=0 is not allowed"),
        (
            {"aggregation": "secagg+:threshold=0.5"},
            "threshold=0.5 is not allowed; give a number above 0.5, up to 1",
        ),
        ({"clients": "1"}, "clients = 1: 1 would be in a round; give 2 to 1023"),
        ({"fraction_train": "0.1"}, "clients = 10: 1 would be in a round"),
        ({"clients": "2000"}, "clients = 2000: 2000 would be in a round"),
        ({"update": "delta", "local_steps": "2"}, "local_steps = 2: 1 for aggregation"),
        ({"batch_size": "200000"}, "batch_size = 200000: at most 104857"),
        ({"quantizers": "sum:clients=2,step=1(none)"}, "no client sends 'sum:"),
    ],
)
def test_what_cannot_be_added_up_is_refused_in_one_line(given, words):
    with pytest.raises(SettingsError, match=words) as caught:
        load_settings(None, {"aggregation": "secagg+"} | given)
    assert "\n" not in str(caught.value)


@register("model", "one_batch_norm")
def one_batch_norm(spec):
    layers = nn.Linear(prod(spec.shape), 4), nn.BatchNorm1d(4), nn.Linear(4, spec.classes)
    return nn.Sequential(nn.Flatten(), *layers)


def test_a_model_with_batch_norm_is_refused():
    given = {"aggregation": "secagg+", "model": "one_batch_norm", "batch_size": "2"}
    with pytest.raises(SettingsError, match="aggregation = 'secagg\\+': plain for a model with"):
        check_data(load_settings(None, given | {"quantizers": "none", "clients": "4"}))
