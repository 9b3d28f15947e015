"""Constructor options on the command line, such as `--model.cell-options zoneout 0.1`.

Two forms work for every field `*_options`, whatever the recipe has there: pairs of name and value,
and one option per flag, `--model.cell-options.zoneout 0.1`. They are added to the recipe's options.
Naming another variant, as in `--model.cell gru`, drops the recipe's options for the old one.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bilstm_attn.config import Config, Options
from bilstm_attn.errors import UserError

FLAG = re.compile(r"--([a-z]+)\.([a-z_-]+?)[_-]options(?:\.([^=\s]+))?(?:=(.*))?", re.DOTALL)


def apply_options(config: Config, arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """Returns the config with all options applied, and the arguments that are left.

    Raises:
      UserError: a name without a value.
    """
    rest, changes = [], []
    for flag, values in _flags_with_values(arguments):
        match = FLAG.fullmatch(flag)
        if match is None:
            rest += [flag, *values]
            continue
        owner, family, name, value = match.groups()
        words = ([name] if name else []) + ([value] if value is not None else []) + values
        changes.append((owner, family.replace("-", "_"), _pairs(flag, words)))
    chosen = _chosen_variants(rest)
    for owner, fields in _options_fields(config).items():
        section = getattr(config, owner)
        updates: dict[str, Options] = {}
        for family in fields:
            options = dict(getattr(section, f"{family}_options"))
            if chosen.get((owner, family), getattr(section, family)) != getattr(section, family):
                options = {}
            for changed_owner, changed_family, pairs in changes:
                if (changed_owner, changed_family) == (owner, family):
                    options = options | pairs if pairs else {}
            updates[f"{family}_options"] = options
        config = dataclasses.replace(config, **{owner: dataclasses.replace(section, **updates)})
    known = {
        (owner, family) for owner, fields in _options_fields(config).items() for family in fields
    }
    for owner, family, _ in changes:
        if (owner, family) not in known:
            names = ", ".join(f"--{a}.{b.replace('_', '-')}-options" for a, b in sorted(known))
            raise UserError(f"unknown options --{owner}.{family}-options; choose {names}")
    return config, rest


def _flags_with_values(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields every flag with the words up to the next one; words before the first flag alone."""
    position = 0
    while position < len(arguments):
        flag, values = arguments[position], []
        position += 1
        while position < len(arguments) and not _is_flag(arguments[position]):
            values.append(arguments[position])
            position += 1
        yield flag, values


def _is_flag(word: str) -> bool:
    """Returns whether a word begins a flag; a negative number does not."""
    return word.startswith("-") and re.fullmatch(r"-\d.*|-\.\d.*|-inf", word) is None


def _pairs(flag: str, words: Sequence[str]) -> Options:
    """Returns the options in alternating names and values."""
    if len(words) % 2:
        raise UserError(f"{flag} takes pairs of name and value, got {' '.join(words)!r}")
    return {name: _value(text) for name, text in zip(words[::2], words[1::2], strict=True)}


def _value(text: str) -> int | float | bool | str:
    """Returns the text as an integer, a float or a truth value if it reads as one."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _chosen_variants(arguments: Sequence[str]) -> dict[tuple[str, str], str]:
    """Returns the variants that the arguments name: `--model.cell gru`."""
    chosen = {}
    for flag, values in _flags_with_values(arguments):
        name, _, value = flag.partition("=")
        match = re.fullmatch(r"--([a-z]+)\.([a-z_-]+)", name)
        if match is not None and (value or values):
            chosen[match[1], match[2].replace("-", "_")] = value or values[0]
    return chosen


def _options_fields(config: Config) -> dict[str, list[str]]:
    """Returns the families that have a field of options, by their part of the config."""
    fields: dict[str, list[str]] = {}
    for part in dataclasses.fields(config):
        section: Any = getattr(config, part.name)
        if dataclasses.is_dataclass(section):
            names = [field.name for field in dataclasses.fields(section)]
            suffix = "_options"
            families = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
            fields[part.name] = families
    return {name: families for name, families in fields.items() if families}
