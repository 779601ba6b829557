"""An audit of an app of which one client spoilt what was stored."""

import json

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from safetensors import safe_open
from torch import nn

from clients.mods import Quantize
from fl_sim.engines.grids import LocalGrid
from fl_sim.observed.observations import round_path
from fl_sim.storage.files import StoreError, write_tensors
from fl_sim.updates.local_update import LocalWork
from server.auditing.app_audit import audit
from server.strategies.curious import HonestButCurious

SPECS = ("stochastic:bits=4", "sign", "topk:keep=0.5")


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def train(folder, clients=3, rounds=2, specs=SPECS[:1]):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = net()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        partition = int(context.node_config["partition-id"])
        images = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(partition))
        nn.functional.cross_entropy(model(images), torch.tensor([1])).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        arrays, metrics = ArrayRecord(model.state_dict()), MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    def client(message: Message, context: Context) -> Message:
        spec = specs[int(context.node_config["partition-id"]) % len(specs)]
        return Quantize(spec)(message, context, app)

    work = LocalWork("delta", learning_rate=0.1)
    strategy = HonestButCurious(FedAvg(fraction_evaluate=0.0), folder, work=work)
    start = ArrayRecord(net().state_dict())
    strategy.start(LocalGrid(client, clients), start, num_rounds=rounds)


def attack(folder, *attacks):
    attacks = attacks or ("cell:iterations=1,restarts=0",)
    return audit(folder, net, shape=(1, 2, 2), classes=3, attacks=attacks)


def rewrite(path, change):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["facts"])
    change(tensors, facts)
    write_tensors(path, tensors, facts)


def named_true(tensors, facts):
    tensors["payload.True"] = tensors.pop("payload.1")


def torn(tensors, facts):
    tensors["payload.1"] = tensors["payload.1"][:-1]


def strange(tensors, facts):
    facts["changes"]["1"]["trained"] = ["0.weight"]


def buffered(tensors, facts):
    facts["changes"]["1"]["exact"] = ["1.running_mean"]


def untold(tensors, facts):
    del facts["changes"]["1"]


def unheard_of(tensors, facts):
    raw = bytes(tensors["payload.1"].tolist()).replace(b"stochastic", b"sarcastics")
    tensors["payload.1"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)


@pytest.mark.parametrize("spoil", [named_true, torn, strange, buffered, untold, unheard_of])
def test_an_audit_names_counts_and_leaves_out_the_client_it_cannot_read(spoil, tmp_path):
    train(tmp_path)
    rewrite(round_path(tmp_path, "flower", 1), spoil)
    client = "True" if spoil is named_true else "1"
    with pytest.warns(RuntimeWarning, match=f"Left out 1 .* round 1, client {client}: "):
        found = attack(tmp_path)
    assert len(found.unreadable) == 1
    seen = [(one.round, one.partition) for one in found]
    assert seen == [(1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_an_audit_leaves_out_a_round_it_cannot_read(tmp_path):
    train(tmp_path)
    broken = round_path(tmp_path, "flower", 2)
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="Left out 1 .*round-00002"):
        found = attack(tmp_path)
    assert [(one.round, one.partition) for one in found] == [(1, 0), (1, 1), (1, 2)]
    round_path(tmp_path, "flower", 1).write_bytes(b"")
    with pytest.raises(StoreError, match="Nothing .* can be attacked.*round-00001"):
        attack(tmp_path)


@pytest.mark.parametrize("chosen", ["cell:iterations=1,restarts=0", "dlg:iterations=1,restarts=0"])
def test_clients_may_choose_quantizers_of_their_own(chosen, tmp_path):
    train(tmp_path, specs=SPECS)
    found = attack(tmp_path, chosen)
    assert len(found) == 6


def test_an_attack_that_does_not_apply_is_not_taken_for_one_that_found_nothing(tmp_path):
    train(tmp_path, rounds=1)
    chosen = ("joint:iterations=1,restarts=0", "cell:iterations=1,restarts=0")
    with pytest.warns(RuntimeWarning, match="'joint.*does not apply to 3 of 3 updates"):
        found = attack(tmp_path, *chosen)
    assert [one.attack for one in found] == [chosen[1]] * 3
    with (
        pytest.warns(RuntimeWarning, match="does not apply"),
        pytest.raises(ValueError, match="No attack of joint.* applies"),
    ):
        attack(tmp_path, chosen[0])
