"""Scores, tables, curves and pictures made from what a run wrote."""
