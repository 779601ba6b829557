"""Kept for apps that import `SampleBySeed` from here; new ones import it from `server`."""

from server.strategies.sampling import SampleBySeed

__all__ = ["SampleBySeed"]
