"""Flower records: the messages of a trial and the weights of an app."""
