"""Measurements of servers that do not follow the protocol."""
