"""One lookup for every table of names, with one error for every unknown name."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from bilstm_attn.errors import UserError

T = TypeVar("T")


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """Returns the error for an unknown `name`: the choices, and the nearest of them."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}; choose {', '.join(choices)}{hint}")


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
      UserError: `name` is not in the table, or its class takes no such option.
    """
    constructor = look_up(kind, table, name)
    parameters = inspect.signature(constructor).parameters
    allowed = sorted(set(parameters) - set(given))
    for option in options:
        if option not in allowed:
            takes = f"choose {', '.join(allowed)}" if allowed else "it takes none"
            raise UserError(f"unknown option {option!r} of {kind} {name!r}; {takes}")
    return constructor(**given, **options)
