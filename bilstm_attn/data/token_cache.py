"""The token cache: every example of a data set, tokenised once.

A folder per data set and tokeniser holds a lexicon (all distinct words, in alphabetical order), and
for each split the words of its examples as one flat array of indices into the lexicon. A cache
depends on no run's vocabulary, truncation or seed, so it serves every run of that data set and
tokeniser. Reading one needs neither the archive nor tensorflow-datasets, so a cache can be copied
to another machine.
"""

import dataclasses
import json
import secrets
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.sources import DATASETS
from bilstm_attn.data.token_writer import TokenWriter, meta_sha256, require_label
from bilstm_attn.data.tokenisers import TOKENISERS, make_tokeniser
from bilstm_attn.errors import UserError
from bilstm_attn.registry import look_up
from bilstm_attn.runtime.console import Console
from bilstm_attn.runtime.files import default_cache_dir, file_sha256, json_sha256

CACHE_VERSION = 2


@dataclasses.dataclass(frozen=True)
class DataLocations:
    """Where data and token caches are on this machine; changes no number."""

    cache: Path | None = None
    """Folder of the token caches; None is ~/.cache/bilstm_attn."""
    data_dir: Path | None = None
    """Folder of tensorflow-datasets; None is its own default."""
    archive: Path | None = None
    """A local aclImdb_v1.tar.gz to prepare the data set from."""


class Split(NamedTuple):
    """One split: example i is `words[offsets[i]:offsets[i + 1]]`, indices into the lexicon."""

    words: np.ndarray  # int32, memory-mapped
    offsets: np.ndarray  # int64[n + 1]
    labels: np.ndarray  # int8[n]: a label of the task, or -1 for unlabelled

    @property
    def counts(self) -> np.ndarray:
        """Number of words of each example, without the start token, before truncation."""
        return np.diff(self.offsets)


class TokenCache:
    """A prepared folder, opened for reading; the digest of every file is verified.

    Raises:
      UserError: a file is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            if meta_sha256(self.meta) != self.meta["meta_sha256"]:
                raise ValueError("meta.json is not what was written")
            for name, digest in self.meta["files_sha256"].items():
                if file_sha256(folder / name) != digest:
                    raise ValueError(f"{name} is not what was written")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"the token cache {folder} is damaged ({error}); delete it and run "
                "scripts/prepare_data.py, or copy it again"
            ) from None

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits it holds."""
        return tuple(self.meta["splits"])

    def lexicon(self) -> list[str]:
        """Returns the distinct words of all splits, in alphabetical order."""
        return (self.folder / "lexicon.txt").read_bytes().decode().split("\n")

    def split(self, name: str) -> Split:
        """Returns a split, memory-mapped.

        Raises:
          UserError: the data set has no such split.
        """
        look_up(f"split of {self.meta['dataset']}", self.meta["splits"], name)
        return Split(
            *(np.load(self.folder / f"{name}.{part}.npy", mmap_mode="r") for part in _PARTS)
        )


_PARTS = Split._fields


def cache_folder(config: DataConfig, cache_dir: Path) -> Path:
    """Returns the folder below `cache_dir` of the tokens of a data set, by one tokeniser.

    Raises:
      UserError: there is no such data set or tokeniser.
    """
    dataset = f"{config.dataset}-{look_up('dataset', DATASETS, config.dataset).version}"
    return cache_dir / f"{dataset}-tokens{_tokeniser_key(config)}.{CACHE_VERSION}"


def _tokeniser_key(config: DataConfig) -> str:
    """Returns the part of the folder's name that identifies the tokeniser."""
    entry = _tokeniser_entry(config)
    if isinstance(entry, int):
        return str(entry)
    return f"-{entry['name']}-{entry['version']}-{entry['options_sha256'][:8]}"


def _tokeniser_entry(config: DataConfig) -> int | dict[str, Any]:
    """Returns the tokeniser's entry of meta.json.

    The entry of the default tokeniser is its version alone, as in caches that were written when
    there was only one tokeniser, so that these are still found.
    """
    name, options = config.tokeniser, config.tokeniser_options
    version = look_up("tokeniser", TOKENISERS, name).version
    if name == DataConfig.tokeniser and not options:
        return version
    options_sha256 = json_sha256(options, sort_keys=True)
    return {"name": name, "version": version, "options_sha256": options_sha256}


def prepare_tokens(config: DataConfig, locations: DataLocations, console: Console) -> TokenCache:
    """Returns the tokens of `config.dataset` by `config.tokeniser`; prepares them if necessary.

    Raises:
      UserError: the examples cannot be found, read or written.
    """
    dataset, tokeniser = config.dataset, make_tokeniser(config)
    folder = cache_folder(config, locations.cache or default_cache_dir())
    if folder.exists():
        console.print(f"found the tokens of {dataset} in {folder}")
        tokens = TokenCache(folder)
        _require_labels(tokens, DATASETS[dataset].label_names)
        return tokens
    source = DATASETS[dataset](data_dir=locations.data_dir, archive=locations.archive)
    partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        writer = TokenWriter(source, tokeniser, _tokeniser_entry(config))
        for split in source.splits:
            with console.bar(f"tokenise {split}", source.size(split), 0) as bar:
                writer.tokenise(split, bar.advance)
        writer.write(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, and its tokens serve
                raise
    except OSError as error:
        raise UserError(
            f"cannot write the token cache {folder} ({error.strerror or error}); free some space "
            "or choose another folder with --cache"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    console.print(f"prepared the tokens of {dataset} in {folder}")
    return TokenCache(folder)


def _require_labels(tokens: TokenCache, label_names: tuple[str, ...]) -> None:
    """Raises a `UserError` unless every label of a cache is one of its data set.

    The labels of an earlier version of the source, or of this package, may be others.
    """
    for name in tokens.splits:
        labels = tokens.split(name).labels
        for row in np.flatnonzero((labels < -1) | (labels >= len(label_names)))[:1]:
            example = f"the token cache {tokens.folder}: row {row} of split {name}"
            remedy = "delete it, and change the labels or the `label_names` of the data set"
            require_label(example, int(labels[row]), label_names, remedy)
