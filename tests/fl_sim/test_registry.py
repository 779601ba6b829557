"""Parts by name: ours, a plug-in's, an installed package's."""

import subprocess
import sys

import pytest

from fl_sim import registry
from fl_sim.plans import parse_plan
from fl_sim.quantizers import parse_quantizer
from fl_sim.registry import find, make, names, register, resolve
from fl_sim.specs import Spec, default_parameters, parse_parameters


def test_a_spec_is_split_in_name_parameters_and_what_it_wraps():
    assert Spec.parse("a") == Spec("a", "", None)
    assert Spec.parse("a:x=1,y=2") == Spec("a", "x=1,y=2", None)
    assert Spec.parse("a:x=1(b:y=2(c))") == Spec("a", "x=1", "b:y=2(c)")
    for text in ("a(b", "a)b", "a(b)c", "a(b))"):
        with pytest.raises(ValueError, match="parentheses"):
            Spec.parse(text)


def test_a_spec_is_printed_and_edited():
    for text in ("a", "a:x=1,y=2", "a(b)", "a:x=1(b:y=2(c))"):
        assert str(Spec.parse(text)) == text
    assert str(Spec.parse("a:x=1,y=2(b)").edited({"y": "3", "z": "4"})) == "a:x=1,y=3,z=4(b)"
    assert str(Spec.parse("a").edited({})) == "a"


def test_parameters_of_several_parts_are_taken_together():
    def one(*, count: int = 1): ...

    def other(*, share: float = 0.5): ...

    assert parse_parameters((one, other), "share=1,count=2") == {"count": 2, "share": 1.0}
    assert default_parameters((one, other)) == {"count": 1, "share": 0.5}
    with pytest.raises(ValueError, match="one of count, share"):
        parse_parameters((one, other), "size=1")


def test_keyword_only_arguments_of_a_function_are_its_parameters():
    def part(given, *, count: int, share: float = 0.5, kind: str = "x"): ...

    assert parse_parameters(part, "count=3,kind=y") == {"count": 3, "kind": "y"}
    for text, fault in [
        ("share=1", "count is missing"),
        ("count=1.5", "not a whole number"),
        ("count=1,cuont=2", "did you mean 'count'"),
        ("given=1,count=1", "no parameter 'given'"),
        ("count=1,count=1", "twice"),
        ("count", "name=value"),
    ]:
        with pytest.raises(ValueError, match=fault):
            parse_parameters(part, text)


def test_only_a_part_that_wraps_another_takes_parentheses():
    assert resolve("model", "imprint:bins=8(lenet)").keywords == {"of": "lenet", "bins": 8}
    with pytest.raises(ValueError, match="wraps no other"):
        resolve("model", "lenet(mlp)")
    with pytest.raises(ValueError, match="parentheses is missing"):
        resolve("model", "imprint:bins=8")


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="no model 'lenett'; one of .*; did you mean 'lenet'"):
        find("model", "lenett")
    with pytest.raises(ValueError, match="no kind of part 'modle'; .* did you mean 'model'"):
        register("modle", "mine")


def test_a_name_belongs_to_one_module():
    with pytest.raises(ValueError, match=r"'lenet' of 'fl_sim.models.lenet' exists already"):
        register("model", "lenet")(object)
    assert "lenet" in names("model")


SOURCE = """
from fl_sim.quantizers.sign import Sign

class Minus(Sign):
    pass
"""


def test_an_installed_package_names_its_parts_in_an_entry_point(tmp_path):
    (tmp_path / "minus_package.py").write_text(SOURCE)
    info = tmp_path / "minus-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minus\nVersion: 1.5\n")
    (info / "top_level.txt").write_text("minus_package\n")
    (info / "entry_points.txt").write_text("[fl_sim.quantizer]\nminus = minus_package:Minus\n")
    code = (
        "from fl_sim import parse_quantizer; from fl_sim.registry import module_of, names;"
        "from fl_sim.storage.fingerprint import code_version;"
        "print(parse_quantizer('minus').spec, module_of('quantizer', 'minus'));"
        "print(names('quantizer')[-1], code_version(('minus_package',)))"
    )

    def told():
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}",
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    first = told()
    assert first[:3] == ["minus", "minus_package", "minus"]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minus\nVersion: 1.6\n")
    second = told()
    assert second[:3] == first[:3]
    assert second[3] != first[3]


def test_a_part_that_raises_or_makes_something_else_is_refused_in_one_line(monkeypatch):
    known = {kind: dict(parts) for kind, parts in registry._registered.items()}
    monkeypatch.setattr(registry, "_registered", known)

    def unfinished():
        raise KeyError("no\nsuch thing")

    for kind in ("attack", "server", "quantizer"):
        register(kind, "unfinished")(unfinished)
    with pytest.raises(ValueError, match="^the attack 'unfinished' raised KeyError: .*such thing"):
        make("attack", "unfinished")
    with pytest.raises(ValueError, match="^the server 'unfinished' raised KeyError"):
        parse_plan("unfinished")
    with pytest.raises(ValueError, match="'unfinished' is not a subclass of Quantizer"):
        parse_quantizer("unfinished")
    register("server", "nothing")(lambda: None)
    with pytest.raises(ValueError, match="'nothing' is not a ServerPlan, but a NoneType"):
        parse_plan("nothing")
