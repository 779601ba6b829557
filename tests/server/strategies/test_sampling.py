import random

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fl_sim.engines.grids import LocalGrid
from server.strategies.sampling import SampleBySeed


class Shuffled(LocalGrid):
    """Nodes come up in another order in every run, and one of them is down."""

    def get_node_ids(self):
        nodes = [node for node in super().get_node_ids() if node != 5]
        return random.sample(nodes, len(nodes))


def asked(seed, server_round=1):
    grid = Shuffled(ClientApp(), 10)
    nodes = {partition: partition + 2 for partition in range(10)}
    strategy = SampleBySeed(FedAvg(fraction_train=0.4, fraction_evaluate=0.4), nodes, seed)
    messages = strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)
    evaluated = strategy.configure_evaluate(server_round, ArrayRecord(), ConfigRecord(), grid)
    return [[m.metadata.dst_node_id for m in each] for each in (messages, evaluated)]


def test_the_same_partitions_are_asked_whatever_order_nodes_come_up_in():
    assert asked(0) == asked(0) == asked(0)
    train, evaluate = asked(0)
    assert len(train) == len(evaluate) == 3
    assert 5 not in train + evaluate


def test_rounds_and_seeds_differ_and_pythons_generator_is_left_as_it_was():
    random.seed(3)
    before = random.getstate()
    strategy = SampleBySeed(FedAvg(), {p: p + 2 for p in range(10)}, 0)
    strategy.configure_train(1, ArrayRecord(), ConfigRecord(), LocalGrid(ClientApp(), 10))
    assert random.getstate() == before
    assert len({str(asked(0, r)[0]) for r in range(1, 9)}) > 4
    assert asked(0) != asked(1)
