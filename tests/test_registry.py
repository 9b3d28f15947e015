"""Tables of variants: lookup, options, type checks and their errors."""

from typing import Literal

import pytest
from flax import nnx
from tiny_run import error_of

from bilstm_attn.registry import fits, look_up, make


class Plain:
    def __init__(self, size: int, *, rate: float = 0.5, words: str = "few"):
        self.arguments = size, rate, words


class Module(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs, rate: float = 0.5):
        self.arguments = size, rate


class WithoutOptions:
    pass


TABLE = {"plain": Plain, "module": Module, "bare": WithoutOptions}


def error_of_make(name: str, options: dict, **arguments) -> str:
    return error_of(make, "thing", TABLE, name, options, **arguments)


def test_unknown_name_lists_the_choices_and_the_nearest():
    expected = "unknown thing 'plane'; choose bare, module, plain (did you mean 'plain'?)"
    assert error_of_make("plane", {}) == expected
    assert error_of(look_up, "thing", TABLE, "plane") == expected


def test_unknown_name_unlike_every_choice_gets_no_suggestion():
    assert error_of_make("xyz", {}) == "unknown thing 'xyz'; choose bare, module, plain"


def test_constructor_receives_arguments_and_options():
    made = make("thing", TABLE, "plain", {"words": "many"}, size=3)
    assert made.arguments == (3, 0.5, "many")


def test_constructor_of_an_nnx_module_receives_options():
    made = make("thing", TABLE, "module", {"rate": 0.25}, size=3, rngs=nnx.Rngs(0))
    assert made.arguments == (3, 0.25)


def test_whole_number_is_converted_for_a_float_option():
    _, rate, _ = make("thing", TABLE, "plain", {"rate": 2}, size=3).arguments
    assert (rate, type(rate)) == (2.0, float)


def test_unknown_option_lists_the_options_of_the_class():
    expected = "unknown option 'rat' of thing 'module'; choose rate"
    assert error_of_make("module", {"rat": 1.0}, size=3, rngs=nnx.Rngs(0)) == expected


def test_argument_of_the_caller_is_not_an_option():
    expected = "unknown option 'size' of thing 'plain'; choose rate, words"
    assert error_of_make("plain", {"size": 4}, size=3) == expected


def test_error_for_a_class_without_options_says_that_it_takes_none():
    expected = "unknown option 'rate' of thing 'bare'; it takes none"
    assert error_of_make("bare", {"rate": 1.0}) == expected


@pytest.mark.parametrize("value", ["high", True])
def test_option_of_the_wrong_type_is_an_error(value):
    expected = f"option 'rate' of thing 'plain' must be float, got {value!r}"
    assert error_of_make("plain", {"rate": value}, size=3) == expected


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
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
def test_type_check_accepts_an_int_as_float_but_nothing_else_of_another_type(value, hint, expected):
    assert fits(value, hint) is expected
