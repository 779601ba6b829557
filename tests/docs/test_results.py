from docs.render.__main__ import ROOT
from results.tables import STAR, VERDICTS


def test_the_readme_defines_the_verdicts_as_the_code_does():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{word}`: {meaning}." in text for word, meaning in VERDICTS.items())
    assert f"A star: {STAR}." in text
