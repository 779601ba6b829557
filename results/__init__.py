"""Scores, tables, figures and pages of what a run wrote.

The names for notebooks and apps are in ``__init__.pyi`` and are loaded at first use.
"""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__, submod_attrs={"app_report": ["print_audit"], "reading.study_reader": ["load_run"]}
)
