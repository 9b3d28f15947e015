"""Tokenises a data set once: `python scripts/prepare_data.py [--archive aclImdb_v1.tar.gz]`."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from bilstm_attn.config import DataConfig, Options
from bilstm_attn.data.token_cache import DataLocations, prepare_tokens
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    dataset: str = "imdb"
    """imdb (train, test, unlabelled) or movie_reviews (train only)."""
    tokeniser: str = DataConfig.tokeniser
    """How a text is split into words: a name in tokenisers.TOKENISERS."""
    tokeniser_options: Options = dataclasses.field(default_factory=dict)
    """Further arguments of the tokeniser's constructor, as pairs of name and value."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str], program: str = "scripts/prepare_data.py") -> int:
    """Prepares; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Finds or downloads a data set and tokenises it once. "
        "The folder it prints is all that training needs, and can be copied to another machine.",
    )
    load_plugins(parsed.plugin)
    data = DataConfig(
        dataset=parsed.dataset,
        tokeniser=parsed.tokeniser,
        tokeniser_options=parsed.tokeniser_options,
    )
    tokens = prepare_tokens(data, parsed.locations, Console())
    for split, size in tokens.meta["splits"].items():
        print(f"{split:10} {size:7,} texts")
    return 0
