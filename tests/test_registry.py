"""Names and options: one lookup, one error."""

from typing import Literal

import pytest
from flax import nnx
from tiny_run import error_of

from bilstm_attn.registry import fits, look_up, make


class Plain:
    def __init__(self, size: int, *, rate: float = 0.5, words: str = "few"):
        self.made_of = size, rate, words


class Module(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs, rate: float = 0.5):
        self.made_of = size, rate


class Bare:
    pass


TABLE = {"plain": Plain, "module": Module, "bare": Bare}


def error_making(name: str, options: dict, **given) -> str:
    return error_of(make, "thing", TABLE, name, options, **given)


def test_unknown_name_lists_the_choices_and_the_nearest():
    says = "unknown thing 'plane'; choose bare, module, plain (did you mean 'plain'?)"
    assert error_making("plane", {}) == says
    assert error_of(look_up, "thing", TABLE, "plane") == says


def test_unknown_name_like_no_other_gets_no_suggestion():
    assert error_making("xyz", {}) == "unknown thing 'xyz'; choose bare, module, plain"


def test_options_join_what_is_given():
    assert make("thing", TABLE, "plain", {"words": "many"}, size=3).made_of == (3, 0.5, "many")


def test_options_reach_an_nnx_module():
    made = make("thing", TABLE, "module", {"rate": 0.25}, size=3, rngs=nnx.Rngs(0))
    assert made.made_of == (3, 0.25)


def test_whole_number_serves_as_a_float_option():
    _, rate, _ = make("thing", TABLE, "plain", {"rate": 2}, size=3).made_of
    assert (rate, type(rate)) == (2.0, float)


def test_unknown_option_lists_what_the_class_takes():
    says = "unknown option 'rat' of thing 'module'; choose rate"
    assert error_making("module", {"rat": 1.0}, size=3, rngs=nnx.Rngs(0)) == says


def test_what_the_model_gives_is_no_option():
    says = "unknown option 'size' of thing 'plain'; choose rate, words"
    assert error_making("plain", {"size": 4}, size=3) == says


def test_class_without_options_says_so():
    assert (
        error_making("bare", {"rate": 1.0})
        == "unknown option 'rate' of thing 'bare'; it takes none"
    )


@pytest.mark.parametrize("value", ["high", True])
def test_option_of_another_type_is_an_error(value):
    says = f"option 'rate' of thing 'plain' must be float, got {value!r}"
    assert error_making("plain", {"rate": value}, size=3) == says


@pytest.mark.parametrize(
    ("value", "hint", "does"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        (False, float, False),
        ("1", float, False),
        (True, bool, True),
        (None, int | None, True),
        ("a", int | None, False),
        ((1, 2), tuple[int, ...], True),
        ((1, 2.5), tuple[int, ...], False),
        ([1, 2], tuple[int, ...], False),
        ({"a": 1.5}, dict[str, int | float], True),
        ({"a": []}, dict[str, int | float], False),
        ({1: 1}, dict[str, int | float], False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
    ],
)
def test_fits_is_strict_but_for_whole_floats(value, hint, does):
    assert fits(value, hint) is does
