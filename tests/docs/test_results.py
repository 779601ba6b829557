from pathlib import Path

from docs.render.results import verdicts_list
from docs.render.settings import replace_section
from results.tables import STAR, VERDICTS

README = Path(__file__).parent.parent.parent / "README.md"


def test_the_readme_defines_the_verdicts_as_the_code_does():
    text = README.read_text(encoding="utf-8")
    assert replace_section(text, "verdicts", verdicts_list()) == text
    assert all(f"`{word}`: {meaning}." in text for word, meaning in VERDICTS.items())
    assert f"A star: {STAR}." in text
