from attacker.presets import PRESETS
from docs.render.attacks import presets_table


def test_every_preset_is_documented_with_its_values():
    table = presets_table()
    assert all(f"| `{name}` | {preset.summary} | `" in table for name, preset in PRESETS.items())
