"""Links of the Markdown files lead somewhere; ``make docs`` checks those of the site again."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = {".venv", ".git", "node_modules", "runs", "site"}
LINK = re.compile(r"""!?\[[^\]]*\]\(([^)\s]+)\)|<img src="([^"]+)""")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents(root):
    found = (path for path in root.rglob("*.md"))
    return sorted(p for p in found if not SKIPPED & set(p.relative_to(root).parts))


def anchors(path):
    """Return the anchors of a document's headings, as GitHub makes them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", one).lower()) for one in headings)
    return {one.replace(" ", "-") for one in plain}


def broken_links(path):
    """Return the relative links of a document whose file or heading does not exist."""
    broken = []
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for link in ("".join(groups) for groups in LINK.findall(text)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (path.parent / target).resolve() if target else path
        known = not anchor or file.suffix != ".md" or (file.exists() and anchor in anchors(file))
        if not file.exists() or not known:
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", documents(ROOT), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path):
    assert broken_links(path) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Some heading: `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#some-heading-code) [c](https://example.org/x)\n"
        '<img src="other.md" width="9"> <img src="gone.png">\n'
        "[d](missing.md) [e](other.md#nowhere) ![f](missing.png)\n```\n[g](missing)\n```\n"
    )
    assert broken_links(page) == ["gone.png", "missing.md", "other.md#nowhere", "missing.png"]
