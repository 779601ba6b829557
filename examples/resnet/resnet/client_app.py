"""The client app; `Quantize` is the line that was added."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients import Quantize
from resnet.task import Net, load_data
from resnet.task import train as train_fn

app = ClientApp(mods=[Quantize("uniform:bits=8")])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on local data."""
    model, config = Net(), msg.content["config"]
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    partition_id, batch_size = context.node_config["partition-id"], context.run_config["batch-size"]
    trainloader = load_data(int(partition_id), int(config["server-round"]), int(batch_size))
    epochs = int(context.run_config["local-epochs"])
    train_loss = train_fn(model, trainloader, epochs, float(config["lr"]))
    metrics = {"train_loss": train_loss, "num-examples": len(trainloader.dataset)}
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    )
    return Message(content=content, reply_to=msg)
