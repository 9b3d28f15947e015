"""Tables of named variants: lookup, construction with options, and type checks of values.

A table maps a name to a class, such as `CELLS`. Name and options come from a config.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from bilstm_attn.errors import UserError

T = TypeVar("T")


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Returns the error for an unknown `name`, which lists the choices and the nearest one."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}; choose {', '.join(choices)}{hint}")


def fits(value: object, hint: Any) -> bool:
    """Returns whether `value` has the type `hint`; an int is a valid float, a bool is neither.

    >>> fits(1, float | None), fits(True, int), fits((1, 2.5), tuple[int, ...])
    (True, False, False)
    """
    if hint in (Any, inspect.Parameter.empty):
        return True
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(name, arguments[0]) and fits(item, arguments[1]) for name, item in value.items()
        )
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def require_type(name: str, value: object, hint: Any) -> None:
    """Raises a `UserError` that names `name` unless `value` has the type `hint`."""
    if fits(value, hint):
        return
    if get_origin(hint) is Literal:
        raise unknown(name, str(value), get_args(hint))
    expected = str(hint) if get_origin(hint) else hint.__name__
    raise UserError(f"{name} must be {expected}, got {value!r}")


def look_up(kind: str, table: Mapping[str, T], name: str) -> T:
    """Returns `table[name]`; `kind` describes the table in the error.

    Raises:
      UserError: `name` is not in the table.
    """
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def make(
    kind: str, table: Mapping[str, type[T]], name: str, options: Mapping[str, Any], **arguments: Any
) -> T:
    """Constructs `table[name](**arguments, **options)`.

    `arguments` are common to every entry of the table; `options` come from the config. A whole
    number is converted where the constructor's annotation is float.

    Raises:
      UserError: `name` is not in the table, or an option is unknown or has the wrong type.
    """
    constructor = look_up(kind, table, name)
    # The signature of an NNX module class itself is `*args, **kwargs`, so inspect `__init__`.
    parameters = inspect.signature(constructor.__init__).parameters.values()
    hints = {
        parameter.name: parameter.annotation
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    allowed = sorted(set(hints) - set(arguments) - {"self"})
    converted = dict(options)
    for option, value in options.items():
        if option not in allowed:
            takes = f"choose {', '.join(allowed)}" if allowed else "it takes none"
            raise UserError(f"unknown option {option!r} of {kind} {name!r}; {takes}")
        require_type(f"option {option!r} of {kind} {name!r}", value, hints[option])
        if hints[option] is float:
            converted[option] = float(value)  # the command line parses 1 as an int
    return constructor(**arguments, **converted)
