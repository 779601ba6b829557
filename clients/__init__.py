"""Flower client app, the quantizing mod and local training."""
