import pytest

from attacker.document import BEGIN, DOCUMENT, END, documented
from attacker.presets import PRESETS


def test_the_documented_presets_are_those_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert documented(text) == text


def test_every_preset_is_documented_with_its_values():
    text = documented(f"{BEGIN}{END}")
    assert all(f"| `{name}` | `objective=" in text for name in PRESETS)


def test_a_document_without_markers_is_refused():
    with pytest.raises(ValueError, match="lacks"):
        documented("nothing here")
