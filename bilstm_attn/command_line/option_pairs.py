"""Constructor options on the command line, such as `--model.cell-options zoneout 0.1`.

Two forms work for every field `*_options`, whatever the recipe has there: pairs of name and value,
and one option per flag, `--model.cell-options.zoneout 0.1`. They are added to the recipe's options.
Naming another variant, as in `--model.cell gru`, drops the recipe's options for the old one.
"""

import re
from collections.abc import Iterator, Sequence

from bilstm_attn.config import Config, Options, fields_of
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
    families = _families_with_options(config)
    _require_known(families, [(owner, family) for owner, family, _ in changes])
    chosen = _chosen_variants(rest)
    updates: dict[str, Options] = {}
    for owner, family in families:
        section = getattr(config, owner)
        variant, options = getattr(section, family), getattr(section, f"{family}_options")
        if chosen.get((owner, family), variant) != variant:
            options = {}
        for changed_owner, changed_family, pairs in changes:
            if (changed_owner, changed_family) == (owner, family):
                options = options | pairs if pairs else {}
        updates[f"{owner}.{family}_options"] = options
    return config.replace(updates), rest


def _require_known(families: Sequence[tuple[str, str]], changed: Sequence[tuple[str, str]]) -> None:
    """Raises a `UserError` for options of a family that takes none."""
    for owner, family in changed:
        if (owner, family) not in families:
            names = ", ".join(f"--{a}.{b.replace('_', '-')}-options" for a, b in families)
            raise UserError(f"unknown options --{owner}.{family}-options; choose {names}")


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


def _families_with_options(config: Config) -> list[tuple[str, str]]:
    """Returns every family that has a field of options, after its part of the config."""
    return [
        (owner, name.removesuffix("_options"))
        for owner, _, name in (path.partition(".") for path in sorted(fields_of(config)))
        if name.endswith("_options")
    ]
