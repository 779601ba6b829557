from attacker.presets import PRESETS
from docs.render.attacks import DOCUMENT, presets_table
from docs.render.settings import replace_section


def test_the_documented_presets_are_those_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert replace_section(text, "presets", presets_table()) == text


def test_every_preset_is_documented_with_its_values():
    table = presets_table()
    assert all(f"| `{name}` | {preset.summary} | `obj" in table for name, preset in PRESETS.items())
