from docs.render.settings import settings_table
from fl_sim.study.settings import option_fields


def test_every_setting_is_described():
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(option_fields())
    assert [row for row in rows if row.endswith("| None |")] == []
