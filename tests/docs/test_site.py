"""The documentation builds without warnings and without a network, and asks nobody for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.offline import PREFIX, can_isolate

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


class Requests(HTMLParser):
    """Collect the addresses that a browser loads by itself when it opens a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        if tag == "link" and facts.get("rel") in ("canonical", "next", "prev"):
            return
        address = facts.get(LOADED.get(tag, ""))
        if address:
            self.found.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the documentation, behind a network that leads nowhere where that is possible."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    command = [*PREFIX, *command] if can_isolate() else command
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.found
        assert [a for a in parser.found if re.match(r"(https?:)?//", a)] == [], page.name
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", styles)


@pytest.mark.parametrize(
    "package", ["attacker", "clients", "fl_sim", "fl_sim.testing", "results", "server"]
)
def test_the_reference_documents_what_each_package_exports(site, package):
    from importlib import import_module

    page = f"{package.partition('.')[0]}.html"
    text = (site / "reference" / "api" / page).read_text(encoding="utf-8")
    exported = import_module(package).__all__
    assert exported
    assert [name for name in exported if f'id="{package}.{name}"' not in text] == []


def test_tables_of_measurements_can_be_downloaded(site):
    kept = {path.name for path in (ROOT / "docs" / "results").rglob("*.csv")}
    assert {path.name for path in site.rglob("*.csv")} == kept
