from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from clients.local_training import compute_reply
from fl_sim.data import private_batch
from fl_sim.observed.attack_loss import AttackLoss
from fl_sim.observed.observations import Observation
from fl_sim.observed.reconstructions import Reconstruction
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import LocalReply, Update, flat_model, local_update, one_hot
from results.scores.gates import (
    CONSISTENCY_TOLERANCE,
    Truth,
    doubt,
    examine,
    falls_short,
    predicts_nothing,
    unsettled,
)
from tests.results.conftest import evidence_of, initial_weights, observe, small_settings


def trial_of(quantizer: str, **training: object) -> Trial:
    return trials_of(small_settings(quantizers=[quantizer], seeds=[0], training=training))[0]


def observed(trial: Trial, clients: int = 2) -> tuple[list[Observation], Truth]:
    weights = initial_weights(trial)
    seen = [observe(trial, 1, k, weights) for k in range(clients)]
    batches = [private_batch(trial.federation, trial.work, k, 1) for k in range(clients)]
    return seen, Truth(*(torch.stack(part) for part in zip(*batches, strict=True)))


def guessed(
    seen: list[Observation], images: torch.Tensor, labels: torch.Tensor, objective: str
) -> list[Reconstruction]:
    return [
        Reconstruction(
            *(o.trial, o.round, o.partition, "any", i, y, 0.0, "converged", objective, 1),
            evidence=evidence_of(o, i, y),
        )
        for o, i, y in zip(seen, images, labels, strict=True)
    ]


QUANTIZERS = [
    "none",
    "bf16",
    "uniform:bits=8",
    "uniform:bits=2",
    "stochastic:bits=4",
    "sign",
    "scaled_sign",
    "topk:keep=0.1",
    "drive",
]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(
    "training",
    [
        {"rounds": 5, "batch_size": 2},
        {"rounds": 5, "update": "delta", "local_steps": 2, "local_learning_rate": 0.3},
    ],
)
def test_the_truth_is_consistent_with_every_payload(quantizer, training):
    seen, truth = observed(trial_of(quantizer, **training))
    gates = examine(seen, guessed(seen, *truth, "cell"), truth)
    assert (gates["inconsistency"] <= CONSISTENCY_TOLERANCE).all()
    assert not gates["masked"].any()
    assert not gates["unexplained"].any()
    assert gates["loss_at_guess"].to_numpy() == pytest.approx(gates["loss_at_truth"].to_numpy())


def test_rounding_of_other_kernels_is_no_inconsistency(monkeypatch):
    trial = trial_of("none", rounds=5, batch_size=1)
    weights, model = initial_weights(trial), flat_model(trial.model_spec)
    batches = [private_batch(trial.federation, trial.work, k, 1) for k in range(4)]
    seen = []
    for partition in range(4):
        update = Update(compute_reply(trial, partition, 1, weights).update, model.layout)
        payload = parse_quantizer("none").encode(update, torch.Generator().manual_seed(0))
        facts = (trial.model_spec, trial.work, weights, payload)
        seen.append(Observation(trial.name, 1, partition, *facts))
    truth = Truth(*(torch.stack(part) for part in zip(*batches, strict=True)))
    # Large models magnify rounding beyond any tolerance; here every rounding is beyond it.
    monkeypatch.setattr("results.scores.gates.CONSISTENCY_TOLERANCE", 0.0)
    assert (examine(seen, guessed(seen, *truth, "cell"), truth)["inconsistency"] == 0).all()


def test_what_a_client_computes_may_round_otherwise_when_it_is_computed_again(monkeypatch):
    seen, truth = observed(trial_of("none", rounds=5))
    update = torch.stack([one.cell.decoded for one in seen])

    def again(observations, truth):
        return LocalReply(1.001 * update, torch.zeros(len(update), 0))

    monkeypatch.setattr("results.scores.gates._as_clients_compute", again)
    monkeypatch.setattr("results.scores.gates.CONSISTENCY_TOLERANCE", -1.0)  # always computed again
    gates = examine(seen, guessed(seen, *truth, "cell"), truth)
    assert (gates["inconsistency"] < 1e-5).all()


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=4", "sign"])
def test_a_wrong_sign_or_scale_is_inconsistent(quantizer):
    trial = trial_of(quantizer, rounds=5)
    (seen, *_), truth = observed(trial)
    model = flat_model(trial.model_spec)
    targets = one_hot(truth.labels[0], trial.model_spec.classes)
    update = local_update(model, trial.work, seen.weights, truth.images[0], targets).detach()
    for wrong in (-update, update.flip(0)):
        payload = parse_quantizer(quantizer).encode(
            Update(wrong, model.layout), torch.Generator().manual_seed(0)
        )
        altered = Observation(
            seen.trial, 1, seen.partition, seen.model, seen.work, seen.weights, payload
        )
        one = Truth(truth.images[:1], truth.labels[:1])
        gates = examine([altered], guessed([altered], *one, "cell"), one)
        assert gates["inconsistency"].item() > 0.01


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=2", "sign", "drive"])
def test_the_update_error_is_that_of_the_decoded_update(quantizer):
    seen, truth = observed(trial_of(quantizer, rounds=5))
    gates = examine(seen, guessed(seen, *truth, "cell"), truth)
    for number, one in enumerate(seen):
        model = flat_model(one.model)
        targets = one_hot(truth.labels[number], one.model.classes)
        update = local_update(model, one.work, one.weights, truth.images[number], targets)
        decoded = parse_quantizer(quantizer).decode(one.payload).vector
        expected = float(((decoded - update) ** 2).mean() ** 0.5)
        assert gates["update_rmse"][number] == pytest.approx(expected, rel=1e-3, abs=1e-8)
        assert (expected > 1e-6) is (quantizer != "none")


def test_error_feedback_has_no_consistency_to_check():
    seen, truth = observed(trial_of("error_feedback(sign)", rounds=5))
    gates = examine(seen, guessed(seen, *truth, "cell"), truth)
    assert gates["inconsistency"].isna().all()


@pytest.mark.parametrize("objective", ["squared", "cosine", "scaled", "cell:tv=0.001"])
def test_noise_that_the_attack_stopped_at_is_masked(objective):
    seen, truth = observed(trial_of("uniform:bits=8", rounds=5, batch_size=1))
    noise = torch.rand(truth.images.shape, generator=torch.Generator().manual_seed(0))
    gates = examine(seen, guessed(seen, noise, truth.labels, objective), truth)
    assert gates["masked"].all()
    assert gates["unexplained"].all()
    assert (gates["loss_at_guess"] > gates["loss_at_truth"]).all()


def test_losses_are_those_of_the_objective():
    seen, truth = observed(trial_of("uniform:bits=4", rounds=5))
    grey = torch.full_like(truth.images, 0.5)
    gates = examine(seen, guessed(seen, grey, truth.labels, "scaled:tv=0.5"), truth)
    model, loss = flat_model(seen[0].model), AttackLoss.parse("scaled:tv=0.5")
    for number, one in enumerate(seen):
        targets = one_hot(truth.labels[number], one.model.classes)
        cell = parse_quantizer(one.payload.spec).cell(one.payload)
        for images, column in ((truth.images[number], "truth"), (grey[number], "grey")):
            update = local_update(model, one.work, one.weights, images, targets)
            expected = float(loss(images[None], update[None], cell.stack([cell]))[0])
            assert gates[f"loss_at_{column}"][number] == pytest.approx(expected, rel=1e-4)
    assert gates["loss_at_guess"].to_numpy() == pytest.approx(gates["loss_at_grey"].to_numpy())


def test_each_guess_is_held_to_its_own_objective():
    seen, truth = observed(trial_of("uniform:bits=4", rounds=5))
    objectives = ("scaled:tv=0.5", "cell:tv=0.001")
    alone = [examine(seen, guessed(seen, *truth, one), truth) for one in objectives]
    made = [
        replace(guess, objective=one)
        for guess, one in zip(guessed(seen, *truth, ""), objectives, strict=True)
    ]
    gates = examine(seen, made, truth)
    assert alone[0]["loss_at_grey"][1] != pytest.approx(alone[1]["loss_at_grey"][1])
    for row, expected in enumerate(alone):
        for column in ("loss_at_guess", "loss_at_truth", "loss_at_grey"):
            assert gates[column][row] == pytest.approx(expected[column][row])


def test_what_is_not_finite_is_never_chosen_and_always_masked():
    seen, truth = observed(trial_of("uniform:bits=4", rounds=5))
    broken = truth.images.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    gates = examine(seen, guessed(seen, broken, truth.labels, "squared"), truth)
    assert list(gates["masked"]) == [True, False]


@pytest.mark.parametrize("quantizer", ["none", "uniform:bits=2", "sign", "stochastic:bits=4"])
def test_the_truth_predicts_a_payload_better_than_a_grey_image(quantizer):
    seen, truth = observed(trial_of(quantizer, rounds=5, batch_size=1))
    gates = examine(seen, guessed(seen, *truth, "cell"), truth)
    assert (gates["evidence_at_truth"] < gates["evidence_at_grey"]).all()


def test_the_evidence_of_a_guess_is_what_the_attack_measured():
    seen, truth = observed(trial_of("uniform:bits=4", rounds=5))
    measured = [replace(one, evidence=(0.25, 0.75)) for one in guessed(seen, *truth, "")]
    assert examine(seen, measured, truth)["evidence"].tolist() == [0.5, 0.5]


def test_a_guess_without_evidence_found_nothing_and_an_attack_without_a_loss_masks_nothing():
    seen, truth = observed(trial_of("uniform:bits=4", rounds=5, batch_size=1))
    nothing = [replace(one, evidence=()) for one in guessed(seen, *truth, "")]
    gates = examine(seen, nothing, truth)
    assert np.isinf(gates["evidence"]).all()
    assert gates["unexplained"].all()
    assert gates["loss_at_guess"].isna().all()
    assert not gates["masked"].any()


@pytest.mark.parametrize(
    ("guess", "truth", "grey", "nothing"),
    [
        (0.1, 0.0, 1.0, False),
        (0.75, 0.0, 1.0, False),  # a quarter of the way
        (0.76, 0.0, 1.0, True),
        (1.2, 0.0, 1.0, True),  # worse than grey: it fits noise
        (0.8, 0.799, 0.8, False),  # the payload tells nothing, so that nothing was missed
        (np.inf, 0.0, 1.0, True),
        (np.nan, 0.0, 1.0, True),
    ],
)
def test_a_guess_that_predicts_nothing_where_the_truth_does(guess, truth, grey, nothing):
    assert predicts_nothing(*(np.array([x]) for x in (guess, truth, grey))) == [nothing]


@pytest.mark.parametrize(
    ("guess", "truth", "grey", "short"),
    [
        (0.0, 0.0, 1.0, False),
        (0.009, 0.0, 1.0, False),  # 99 % of the way
        (0.011, 0.0, 1.0, True),
        (0.5, 0.8, 1.0, False),  # better than the truth: nothing more to find by this loss
        (0.801, 0.8, 0.1, False),
        (0.9, 0.8, 0.1, True),  # a loss that prefers grey is no excuse for missing it
        (np.inf, 0.0, 1.0, True),
        (np.nan, 0.0, 1.0, True),
        (1.0, 0.0, np.nan, True),
    ],
)
def test_falling_short_is_measured_from_grey_to_truth(guess, truth, grey, short):
    assert falls_short(np.array([guess]), np.array([truth]), np.array([grey])).item() is short


def victims(
    recovered: int = 0, masked: int = 0, unexplained: int = 0, failed: int = 0, hidden: int = 0
) -> pd.DataFrame:
    rows = [(True, True, True, False)] * recovered + [(False, True, False, False)] * masked
    rows += [(False, False, True, False)] * unexplained + [(False, False, False, True)] * failed
    rows += [(False, False, False, False)] * hidden
    frame = pd.DataFrame(rows, columns=["recovered", "masked", "unexplained", "failed"])
    return frame.assign(inconsistency=0.0)


def test_only_who_was_not_recovered_can_be_unsettled():
    assert unsettled(victims(1, 1, 1, 1, 1)).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("strongest", "success_on_none", "words"),
    [
        (victims(hidden=10), 1.0, ""),
        (victims(hidden=9, masked=1), 1.0, ""),
        (victims(hidden=8, masked=2), 1.0, "failed to optimise on 20% of the victims"),
        (victims(hidden=8, unexplained=2), 1.0, "failed to optimise on 20%"),
        (victims(hidden=8, failed=2), 1.0, "failed to optimise on 20%"),
        (victims(hidden=10), None, "no unquantized row"),
        (victims(hidden=10), 0.4, "only 40% of the unquantized victims"),
        (victims(hidden=10), 0.5, ""),
        (victims(recovered=9, masked=1), None, ""),  # a leak needs no gate
        (victims(recovered=8, masked=2), 1.0, "failed to optimise"),
        (victims(), 1.0, "no attack was run, or none applies"),
        (victims(hidden=10).assign(inconsistency=1e-3), 1.0, "could not be derived again"),
        (victims(hidden=10).assign(inconsistency=np.nan), 1.0, ""),
    ],
)
def test_privacy_is_established_by_passing_every_gate(strongest, success_on_none, words):
    reason = doubt(strongest, success_on_none)
    assert (words in reason) if words else (reason == "")
