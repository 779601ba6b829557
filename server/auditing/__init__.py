"""Attacks on what was observed: the jobs of a study, the audit of an app, tuning."""
