import torch

from clients.app import app
from clients.local_training import compute_reply
from fl_sim.data import private_batch
from fl_sim.engines.grids import LocalGrid
from fl_sim.exchange.messages import (
    pack_weights,
    read_payload,
    set_nonce,
    train_config,
    train_instruction,
    weight_of,
)
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import load_settings
from fl_sim.study.trials import trials_of
from fl_sim.updates.local_update import convolutions_for, flat_model, local_update, one_hot
from server.training import initial_state


def trial_of(spec, **overrides):
    return trials_of(load_settings(None, {"quantizers": spec, "clients": "3", **overrides}))[0]


def ask(grid, trial, server_round, weights, node=0):
    config = train_config(trial)
    config["server-round"] = server_round
    set_nonce(config)
    message = train_instruction(grid.get_node_ids()[node], pack_weights(weights), config)
    (reply,) = grid.send_and_receive([message])
    return reply


def test_a_client_sends_its_update_quantized_and_nothing_else():
    trial = trial_of("uniform:bits=8", batch_size="2")
    weights = initial_state(trial, None)[0]
    reply = ask(LocalGrid(app, 3), trial, 5, weights, node=1)
    payload = read_payload(reply, flat_model(trial.model_spec).layout)
    assert payload.spec == "uniform:bits=8"
    assert weight_of(reply) == 2
    assert list(reply.content.array_records["arrays"]) == ["payload"]
    assert list(reply.content.metric_records["metrics"]) == ["num-examples"]
    assert set(reply.content.config_records["facts"]) == {"nonce", "partition-id"}
    expected = compute_reply(trial, 1, 5, weights).update
    decoded = parse_quantizer(payload.spec).decode(payload).vector
    assert float((decoded - expected).abs().max()) < float(expected.abs().max()) / 100


def test_the_clients_update_is_the_one_the_private_batch_gives():
    trial = trial_of("none", update="delta", local_steps="3", batch_size="2")
    weights = initial_state(trial, None)[0]
    images, labels = private_batch(trial.federation, trial.work, 2, 9)
    assert images.shape[0] == 6
    model, targets = flat_model(trial.model_spec), one_hot(labels, 10)
    with convolutions_for(images):  # else the last bits may differ
        expected = local_update(model, trial.work, weights, images, targets)
    assert torch.equal(compute_reply(trial, 2, 9, weights).update, expected)


def test_randomized_rounding_draws_anew_each_round_but_repeats_with_the_seed():
    trial = trial_of("stochastic:bits=2")
    weights, layout = initial_state(trial, None)[0], flat_model(trial.model_spec).layout

    def payload(server_round):
        return read_payload(ask(LocalGrid(app, 3), trial, server_round, weights), layout)

    assert payload(1) == payload(1)
    assert payload(1).body != payload(2).body


def test_error_feedback_keeps_its_residual_between_rounds_and_drops_it_between_trials():
    trial = trial_of("error_feedback(sign)")
    weights, layout = initial_state(trial, None)[0], flat_model(trial.model_spec).layout
    quantizer = parse_quantizer(trial.quantizer)
    grid = LocalGrid(app, 3)
    sent = [
        quantizer.decode(read_payload(ask(grid, trial, r, weights), layout)).vector
        for r in (1, 2, 3)
    ]
    updates = [compute_reply(trial, 0, r, weights).update for r in (1, 2, 3)]
    (context,) = [c for c in grid._contexts.values() if c.state.array_records]
    residual = torch.tensor(context.state["fl_sim.residual"][trial.name].numpy())
    # What was sent is the sum of the updates less what is still owed: nothing is lost.
    torch.testing.assert_close(sum(sent), sum(updates) - residual, rtol=1e-4, atol=1e-5)
    ask(grid, trial_of("none"), 1, weights)
    assert not context.state.array_records


def test_an_update_that_is_not_finite_never_leaves_the_client():
    trial = trial_of("none")
    weights = torch.full_like(initial_state(trial, None)[0], float("nan"))
    reply = ask(LocalGrid(app, 3), trial, 1, weights)
    assert reply.has_error()
    assert "not finite" in reply.error.reason
    assert not reply.has_content()
