"""Spec strings parse and print exactly, and what is wrong with one is said in one line."""

import pytest

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.catalogue import catalogue
from fl_sim.registry import names
from tests.fl_sim.quantizers.quantizer_cases import SPECS


@pytest.mark.parametrize("spec", SPECS)
def test_specs_parse_and_print_exactly(spec):
    quantizer = parse_quantizer(spec)
    assert quantizer.spec == spec
    assert parse_quantizer(quantizer.spec) == quantizer
    assert hash(parse_quantizer(spec)) == hash(quantizer)


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (" none ", "none"),
        ("topk:keep=.10", "topk:keep=0.1"),
        ("topk:keep=1", "topk:keep=1"),
        ("topk:keep=0.1+none", "topk:keep=0.1"),
        ("uniform:scope=tensor,bits=04", "uniform:bits=4"),
        ("log:base=2.0", "log:base=2"),
        ("log:base=2,bits=6", "log:base=2"),
        ("gaussian:sigma=1e-5", "gaussian:sigma=1e-05"),
        ("gaussian:sigma=1e20", "gaussian:sigma=1e20"),
        ("drive:scale=unbiased", "drive"),
        ("mixed:of=uniform,first=8,rest=2", "mixed:first=8,rest=2"),
    ],
)
def test_canonical_form(given, canonical):
    assert parse_quantizer(given).spec == canonical
    assert parse_quantizer(canonical) == parse_quantizer(given)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("unifrom:bits=4", ["'unifrom'", "did you mean 'uniform'", "stochastic"]),
        ("uniform", ["exactly one of bits and levels"]),
        ("uniform:bits=4,levels=16", ["exactly one of bits and levels"]),
        ("uniform:bits=0", ["bits=0", "1 to 16"]),
        ("uniform:bits=33", ["bits=33", "1 to 16"]),
        ("uniform:levels=1", ["levels=1", "2 to 65536"]),
        ("uniform:bits=four", ["bits=four", "whole number"]),
        ("uniform:bits=4.5", ["bits=4.5", "whole number"]),
        ("uniform:bit=4", ["'bit'", "did you mean 'bits'"]),
        ("uniform:bits=4,bits=5", ["bits is given twice"]),
        ("uniform:bits", ["name=value"]),
        ("uniform:bits=4,scope=globl", ["scope=globl", "did you mean 'global'"]),
        ("absmax:bits=1", ["bits=1", "2 to 16"]),
        ("absmax", ["bits is missing"]),
        ("topk:keep=0", ["keep=0", "above 0"]),
        ("topk:keep=1.5", ["keep=1.5"]),
        ("topk:keep=nan", ["keep=nan"]),
        ("gaussian:sigma=0", ["sigma=0", "above 0"]),
        ("gaussian:sigma=inf", ["sigma=inf"]),
        ("gaussian:sigma=1e308", ["sigma=1e308", "1e-30 to 1e30"]),
        ("laplace:scale=1e-308", ["scale=1e-308", "1e-30 to 1e30"]),
        ("dp_gaussian:clip=1e20,noise=1e20", ["clip * noise=1e40", "1e-30 to 1e30"]),
        ("dp_gaussian:clip=-1,noise=1", ["clip=-1"]),
        ("log:base=1", ["base=1", "above 1"]),
        ("fp8:format=e3m4", ["format=e3m4", "e4m3"]),
        ("eden:bits=9", ["bits=9", "1 to 8"]),
        ("kmeans:clusters=1", ["clusters=1"]),
        ("blockwise:bits=8,block=0", ["block=0"]),
        ("qsgd:levels=0,norm=l2", ["levels=0"]),
        ("qsgd:levels=4,norm=l3", ["norm=l3", "did you mean 'l2'"]),
        ("sign:x=1", ["'x'", "none"]),
        ("sign+topk:keep=0.1", ["only clip and topk", "'sign'"]),
        ("gaussian:sigma=1+sign", ["only clip and topk", "'gaussian'"]),
        ("clip:norm=1+", ["no quantizer ''"]),
        ("clip:norm=0", ["norm=0", "above 0"]),
        ("clip", ["norm is missing"]),
        ("clip:norm=1+error_feedback(sign)", ["outermost"]),
        ("noisy_sign:clip=1,noise=0", ["noise=0", "above 0"]),
        ("rqm:clip=1,margin=1,levels=65,keep=0.5", ["levels=65", "3 to 64"]),
        ("rqm:clip=1,margin=1,levels=16,keep=1", ["keep=1", "below 1"]),
        ("poisson_binomial:clip=1,trials=16,theta=0.3", ["theta=0.3", "up to 0.25"]),
        ("skellam:clip=1,noise=1,bits=17", ["bits=17", "4 to 16"]),
        ("discrete_gaussian:clip=1,noise=0.01,bits=4", ["noise=0.01", "half a step"]),
        ("topk:keep=0.1+", ["no quantizer ''"]),
        ("topk:keep=0.1+error_feedback(sign)", ["outermost"]),
        ("error_feedback(error_feedback(sign))", ["outermost"]),
        ("error_feedback", ["error_feedback(sign)"]),
        ("error_feedback(sgn)", ["did you mean 'sign'"]),
        ("mixed", ["rest=bits"]),
        ("mixed:first=8", ["rest=bits last"]),
        ("mixed:rest=2,first=8", ["rest=bits last"]),
        ("mixed:first=17,rest=2", ["first=17", "1 to 16"]),
        ("mixed:of=log,rest=2", ["of=log", "uniform"]),
        ("", ["no quantizer ''"]),
        ("uniform:bits=" + "4" * 300, ["255 ASCII"]),
        ("sigñ", ["ASCII"]),
    ],
)
def test_bad_specs_are_refused_in_one_clear_line(spec, words):
    with pytest.raises(ValueError, match="Quantizer") as caught:
        parse_quantizer(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert repr(spec) in message
    for word in words:
        assert word in message


def test_catalogue_has_every_quantizer_with_its_facts():
    entries = catalogue()
    assert [entry.name for entry in entries] == sorted(
        names("quantizer"), key=[entry.name for entry in entries].index
    )
    assert {entry.name for entry in entries} == set(names("quantizer"))
    for entry in entries:
        assert parse_quantizer(entry.example).spec == entry.example
        assert entry.summary
        assert entry.bits
        assert entry.error
        assert entry.source
