"""Parts of a document that are written by code, between a pair of markers."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """What stands between the markers ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Attributes
    ----------
    page : str
        Path of the document below the root of the project.
    name : str
        Name of the markers.
    content : str
        Markdown.
    """

    page: str
    name: str
    content: str


def replace_section(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of a section.

    Raises
    ------
    ValueError
        If ``text`` has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"The document has no section {name!r}.")
    return pattern.sub(lambda _: f"{begin}{content}\n{end}", text)
