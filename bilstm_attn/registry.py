"""One lookup for every table of names, with one error for every unknown name.

Names and options come from a config; so the check of a value's type is here too.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from bilstm_attn.errors import UserError

T = TypeVar("T")


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Returns the error for an unknown `name`: the choices, and the nearest of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}; choose {', '.join(choices)}{hint}")


def fits(value: object, hint: Any) -> bool:
    """Says whether `value` is of the type `hint`; an int is a float, a bool is neither.

    >>> fits(1, float | None), fits(True, int), fits((1, 2.5), tuple[int, ...])
    (True, False, False)
    """
    if hint in (Any, inspect.Parameter.empty):
        return True
    of, inner = get_origin(hint), get_args(hint)
    if of is Literal:
        return value in inner
    if of in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if of is tuple:
        return isinstance(value, tuple) and all(fits(item, inner[0]) for item in value)
    if of is dict:
        return isinstance(value, dict) and all(
            fits(name, inner[0]) and fits(item, inner[1]) for name, item in value.items()
        )
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def require_type(what: str, value: object, hint: Any) -> None:
    """Raises a `UserError` about `what` unless `value` is of the type `hint`."""
    if get_origin(hint) is Literal and not fits(value, hint):
        raise unknown(what, str(value), get_args(hint))
    if not fits(value, hint):
        wanted = str(hint) if get_origin(hint) else hint.__name__
        raise UserError(f"{what} must be {wanted}, got {value!r}")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """Returns `table[name]`.

    Raises:
      UserError: `name` is not in the table.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def make(
    kind: str, table: Mapping[str, type[T]], name: str, options: Mapping[str, Any], **given: Any
) -> T:
    """Constructs `table[name](**given, **options)`.

    `given` is what the model passes to every entry, `options` what the config adds for this one.

    Raises:
      UserError: `name` is not in the table, or its class takes no such option or value.
    """
    constructor = look_up(kind, table, name)
    # Of __init__, for the signature of an NNX module itself says `*args, **kwargs`.
    parameters = inspect.signature(constructor.__init__).parameters.values()
    hints = {
        parameter.name: parameter.annotation
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    allowed = sorted(set(hints) - set(given) - {"self"})
    chosen = dict(options)
    for option, value in options.items():
        if option not in allowed:
            takes = f"choose {', '.join(allowed)}" if allowed else "it takes none"
            raise UserError(f"unknown option {option!r} of {kind} {name!r}; {takes}")
        require_type(f"option {option!r} of {kind} {name!r}", value, hints[option])
        if hints[option] is float:
            chosen[option] = float(value)  # the command line reads 1 as an int
    return constructor(**given, **chosen)
