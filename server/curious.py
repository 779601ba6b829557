"""Kept for apps that import `HonestButCurious` from here; new ones import it from `server`."""

from server.strategies.curious import HonestButCurious

__all__ = ["HonestButCurious"]
