"""The Flower client app: it tells which partition it holds, and computes updates."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.local_training import compute_reply
from clients.mods import quantize_trial_mod
from clients.secure import secure_sum_mod
from fl_sim.exchange.messages import (
    partition_reply,
    read_statistics,
    read_task,
    read_weights,
    update_reply,
)

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Reply with the partition of this node."""
    return partition_reply(int(context.node_config["partition-id"]), message)


@app.train(mods=[secure_sum_mod, quantize_trial_mod])
def train(message: Message, context: Context) -> Message:
    """Compute this round's update; the mods around it quantize and mask it."""
    trial, server_round = read_task(message)
    partition = int(context.node_config["partition-id"])
    sent = read_weights(message), read_statistics(message)
    update, statistics = compute_reply(trial, partition, server_round, *sent)
    return update_reply(update, trial.work.images, message, statistics)
