import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fl_sim.coding.payload import PayloadError
from fl_sim.engines.grids import LocalGrid
from fl_sim.exchange.messages import (
    pack_reply,
    pack_weights,
    read_payload,
    read_task,
    read_update,
    read_weights,
    set_nonce,
    train_config,
    train_instruction,
    unpack_weights,
    update_reply,
    weight_of,
)
from fl_sim.models import ModelSpec
from fl_sim.quantizers import parse_quantizer
from fl_sim.study.settings import Settings
from fl_sim.study.trials import Trial, trials_of
from fl_sim.updates.local_update import Update, flat_model

DLG = ModelSpec("lenet_dlg", (3, 32, 32), 10)


@pytest.fixture
def instruction():
    LocalGrid(None, 1)  # gives messages their identity, as an engine does
    trial = trials_of(Settings())[0]
    config = ConfigRecord({**train_config(trial), "server-round": 4})
    set_nonce(config)
    return train_instruction(2, pack_weights(torch.arange(5.0)), config)


def test_an_instruction_carries_trial_round_and_weights(instruction):
    trial, server_round = read_task(instruction)
    assert trial == trials_of(Settings())[0]
    assert server_round == 4
    assert torch.equal(read_weights(instruction), torch.arange(5.0))


def test_a_trial_survives_its_json():
    for trial in trials_of(Settings()):
        assert Trial.from_json(trial.to_json()) == trial


def test_weights_and_updates_cross_bit_for_bit(instruction):
    vector = torch.randn(DLG_SIZE)
    assert torch.equal(unpack_weights(pack_weights(vector)), vector)
    reply = update_reply(vector, 3, instruction)
    assert torch.equal(read_update(reply, flat_model(DLG).layout).vector, vector)
    assert weight_of(reply) == 3


DLG_SIZE = 15_826


@pytest.mark.parametrize("spec", ["none", "uniform:bits=4", "sign", "topk:keep=0.1"])
def test_payload_bytes_are_the_bytes_counted_in_the_flower_message(instruction, spec):
    layout = flat_model(DLG).layout
    update = Update(torch.randn(layout.size), layout)
    payload = parse_quantizer(spec).encode(update, torch.Generator().manual_seed(0))
    reply = pack_reply(update_reply(update.vector, 1, instruction), payload)
    record = reply.content.array_records["arrays"]
    assert record.count_bytes() == payload.nbytes + len("payload")  # Flower counts the key too
    assert len(record["payload"].data) == payload.nbytes
    assert read_payload(reply, layout) == payload


def test_four_bits_of_the_dlg_lenet_take_at_most_8000_bytes():
    layout = flat_model(DLG).layout
    update = Update(torch.randn(layout.size), layout)
    payload = parse_quantizer("uniform:bits=4").encode(update, torch.Generator())
    assert layout.size == DLG_SIZE
    assert len(payload.to_bytes()) == payload.nbytes <= 8_000


def reply_with(instruction, content):
    return Message(RecordDict(content), reply_to=instruction)


def test_replies_that_are_not_one_packed_payload_are_refused(instruction):
    layout = flat_model(DLG).layout
    plain = update_reply(torch.zeros(DLG_SIZE), 1, instruction)
    with pytest.raises(PayloadError, match="no packed payload"):
        read_payload(plain, layout)
    with pytest.raises(PayloadError, match="no packed payload"):
        read_payload(reply_with(instruction, {"arrays": ArrayRecord()}), layout)
    with pytest.raises(PayloadError, match="no packed payload"):
        read_payload(reply_with(instruction, {}), layout)


@pytest.mark.parametrize("count", [0, -3, 2.5, None])
def test_claims_of_no_examples_are_refused(instruction, count):
    metrics = {} if count is None else {"num-examples": count}
    with pytest.raises(PayloadError, match="examples"):
        weight_of(reply_with(instruction, {"metrics": MetricRecord(metrics)}))
