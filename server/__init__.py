"""Flower server app, strategies that gather observations, and the audit that attacks them."""
