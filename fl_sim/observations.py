"""What a server keeps of one client in one round, and its store on disk."""

from dataclasses import dataclass

from torch import Tensor

from fl_sim.models import ModelSpec
from fl_sim.quantizers.payload import Payload
from fl_sim.updates import LocalWork


@dataclass(frozen=True, eq=False)
class Observation:
    """All an honest-but-curious server knows of one client's update; never data, never labels.

    Attributes
    ----------
    trial : str
        Name of the trial (one quantizer x one seed), also the folder it is stored in.
    round : int
        1-based training round.
    partition : int
        Which client.
    model : ModelSpec
        The architecture, public.
    work : LocalWork
        Update kind, batch size, learning rate, local steps: public.
    weights : Tensor
        ``(size,)`` float32 weights the client was given; one tensor shared by a round.
    payload : Payload
        The bytes received; ``payload.spec`` names the quantizer.
    """

    trial: str
    round: int
    partition: int
    model: ModelSpec
    work: LocalWork
    weights: Tensor
    payload: Payload
