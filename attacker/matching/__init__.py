"""Attacks that search images whose update matches the payload."""
