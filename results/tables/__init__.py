"""The tables of a run: one row per quantizer, for the terminal, a paper and CSV files."""
