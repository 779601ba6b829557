"""The catalogue of quantizers."""

from collections.abc import Iterator

from docs.render.sections import Section
from fl_sim.quantizers.catalogue import catalogue

_HEAD = """\
| spec, for example | what it sends | bits on the wire | unbiased | error | source |
|---|---|---|---|---|---|
"""


def sections() -> Iterator[Section]:
    """Yield the catalogue of quantizers."""
    yield Section("docs/quantizers.md", "catalogue", _HEAD + "\n".join(catalogue_lines()))


def catalogue_lines() -> list[str]:
    """Return the catalogue as lines of a Markdown table."""
    lines = []
    for e in catalogue():
        unbiased, summary = "yes" if e.unbiased else "no", e.summary.replace("``", "`")
        lines.append(
            f"| `{e.example}` | {summary} | {e.bits} | {unbiased} | {e.error} | {e.source} |"
        )
    return lines
