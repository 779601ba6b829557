"""What a client computes: layouts of tensors, local work, the differentiable update."""

from fl_sim.updates.local_work import LocalWork

__all__ = ["LocalWork"]
