"""Files, locks, logs, progress and fingerprints; knows nothing of federated learning."""
