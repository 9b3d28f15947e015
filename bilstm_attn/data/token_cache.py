"""The token cache: every example of a data set, tokenised once.

A folder per data set and tokeniser holds a lexicon (all distinct words, in alphabetical order), and
for each split the words of its examples as one flat array of indices into the lexicon. A cache
depends on no run's vocabulary, truncation or seed, so it serves every run of that data set and
tokeniser. Reading one needs neither the archive nor tensorflow-datasets, so a cache can be copied
to another machine.
"""

import dataclasses
import hashlib
import json
import secrets
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig
from bilstm_attn.data.sources import DATASETS, Source
from bilstm_attn.data.tokenisers import TOKENISERS, Tokeniser, make_tokeniser
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
            if _digest_of(self.meta) != self.meta["meta_sha256"]:
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


def _digest_of(meta: Any) -> str:
    """Returns the SHA-256 of everything in meta.json except that digest."""
    rest = {name: value for name, value in meta.items() if name != "meta_sha256"}
    return json_sha256(rest, sort_keys=True)


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
      UserError: the examples cannot be found, read or written; says what to do.
    """
    dataset, tokeniser = config.dataset, make_tokeniser(config)
    folder = cache_folder(config, locations.cache or default_cache_dir())
    if folder.exists():
        console.print(f"found the tokens of {dataset} in {folder}")
        return TokenCache(folder)
    source = DATASETS[dataset](data_dir=locations.data_dir, archive=locations.archive)
    partial = folder.with_name(f"{folder.name}.partial-{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        writer = _Writer(source, tokeniser, _tokeniser_entry(config))
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


class _Writer:
    """Collects the tokens of a data set, then writes them to a folder."""

    def __init__(self, source: Source, tokeniser: Tokeniser, tokeniser_entry: Any):
        self.source, self.tokeniser, self.tokeniser_entry = source, tokeniser, tokeniser_entry
        self.ids: dict[str, int] = {}  # of every distinct word, by order of discovery
        self.splits: dict[str, tuple[array, array, array]] = {}  # words, offsets and labels
        self.digest = hashlib.sha256()  # of labels and texts
        if not isinstance(tokeniser_entry, int):
            self.digest.update(json.dumps(tokeniser_entry, sort_keys=True).encode())

    def tokenise(self, split: str, advance: Callable[[int], object]) -> None:
        """Reads and tokenises a split."""
        ids, words, offsets, labels = self.ids, array("i"), array("q", [0]), array("b")
        for text, label in self.source.read(split):
            words.extend([ids.setdefault(word, len(ids)) for word in self.tokeniser(text)])
            offsets.append(len(words))
            labels.append(label)
            self.digest.update(f"{split}\t{label}\t{text}\n".encode())
            advance(1)
        self.splits[split] = words, offsets, labels

    def write(self, folder: Path) -> None:
        """Writes every split, the lexicon and, last, `meta.json`."""
        lexicon = sorted(self.ids)
        rank = np.empty(len(lexicon), np.int32)  # by id: the index of the word in the lexicon
        rank[[self.ids[word] for word in lexicon]] = np.arange(len(lexicon), dtype=np.int32)
        (folder / "lexicon.txt").write_bytes("\n".join(lexicon).encode())
        for split, (words, offsets, labels) in self.splits.items():
            np.save(folder / f"{split}.words.npy", rank[np.frombuffer(words, np.int32)])
            np.save(folder / f"{split}.offsets.npy", np.frombuffer(offsets, np.int64))
            np.save(folder / f"{split}.labels.npy", np.frombuffer(labels, np.int8))
        meta = {
            "dataset": self.source.name,
            "version": self.source.version,
            "tokeniser": self.tokeniser_entry,
            "splits": {split: len(labels) for split, (_, _, labels) in self.splits.items()},
            "sha256": self.digest.hexdigest(),
            "files_sha256": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        }
        meta["meta_sha256"] = _digest_of(meta)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2))
