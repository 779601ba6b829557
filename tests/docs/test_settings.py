from pathlib import Path

import pytest

from docs.render.settings import replace_section, settings_table
from fl_sim.study.settings import option_fields

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_readme_lists_the_settings_of_the_code():
    text = README.read_text(encoding="utf-8")
    assert replace_section(text, "settings", settings_table()) == text


def test_every_setting_is_described():
    rows = settings_table().splitlines()
    assert len(rows) == len(option_fields())
    assert [row for row in rows if row.endswith("| None |")] == []


def test_only_what_stands_between_the_markers_is_replaced():
    text = "before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter"
    expected = "before\n<!-- a: begin -->\nnew\n<!-- a: end -->\nafter"
    assert replace_section(text, "a", "new") == expected
    with pytest.raises(ValueError, match="no section 'b'"):
        replace_section(text, "b", "new")
