"""Attributes predictions to words: `python scripts/explain.py RUN [TEXT | --limit 50]`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.explain.explain_options import ExplainOptions
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.files import decode_utf8
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments(ExplainOptions):
    """The command line."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or an exported model.safetensors."""
    text: Annotated[Positional[str | None], arg(metavar="[TEXT]")] = None
    """A text to explain; without it, examples are drawn from a split."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/explain.py") -> int:
    """Explains; returns the exit status."""
    options = parse(
        Arguments,
        arguments,
        program=program,
        description="Shades the words of texts by their weight under attention and other "
        "attributions.",
    )
    load_plugins(options.plugin)
    from bilstm_attn.explain.explain_command import run_explanation

    if options.text is not None:
        text = decode_utf8(options.text.encode("utf-8", "surrogateescape"), "the text")
        options = dataclasses.replace(options, text=text)
    return run_explanation(options)
