"""Numbers and values of settings as text."""

from pathlib import Path

import numpy as np
import pandas as pd


def percent(rate: float) -> str:
    """Return a small rate with two digits: ``0.69%``."""
    return f"{100 * rate:.2g}%"


def number(value: float, pattern: str = "{:.3g}") -> str:
    """Return a number as text; a dash if it is missing."""
    return "–" if pd.isna(value) else pattern.format(value)


def setting_value(value: object) -> str:
    """Return the value of a setting as tables and figures show it: of a path its stem."""
    if isinstance(value, Path):
        return value.stem
    empty = isinstance(value, float) and np.isnan(value)  # as pandas reads an empty text
    return "none" if empty else str(value) or "none"


def with_interval(row: "pd.Series", name: str, pattern: str, scale: float) -> str:
    """Return a number with its interval, if it has one: ``0.18 [0.12, 0.25]``."""
    text = number(scale * row[name], pattern)
    low, high = row.get(f"{name}_low", np.nan), row.get(f"{name}_high", np.nan)
    if pd.isna(low):
        return text
    return f"{text} [{pattern.format(scale * low)}, {pattern.format(scale * high)}]"


def with_spread(centre: float, spread: float) -> str:
    """Return an accuracy in percent, with its standard deviation over seeds if it has one."""
    if pd.isna(spread):
        return number(100 * centre, "{:.1f}")
    return f"{100 * centre:.1f} ± {100 * spread:.1f}"
