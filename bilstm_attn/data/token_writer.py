"""Writing a token cache: reads a data set, checks every example, tokenises it, writes the files.

Examples enter the program here only, so labels, texts and words are checked here.
"""

import hashlib
import json
import operator
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_attn.data.sources import Source
from bilstm_attn.data.tokenisers import Tokeniser
from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import file_sha256, json_sha256

REMEDY = "change the labels in its method `read`, or list the name of every label in `label_names`"


def meta_sha256(meta: Any) -> str:
    """Returns the SHA-256 of everything in meta.json except that digest."""
    rest = {name: value for name, value in meta.items() if name != "meta_sha256"}
    return json_sha256(rest, sort_keys=True)


def read_examples(source: Source, split: str) -> Iterator[tuple[str, int]]:
    """Yields text and label of every example of a split, in order, each checked.

    Raises:
      UserError: a text is no str, a label is not one of the source's, or the source raises; names
        the split and the row, counted from 0.
    """
    row = 0
    try:
        for text, label in source.read(split):
            example = f"data set {source.name}: row {row} of split {split}"
            _require_text(example, text)
            require_label(example, label, source.label_names, REMEDY)
            yield text, label
            row += 1
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data set {source.name}: reading row {row} of split {split} raised "
            f"{_describe(error)}; fix its method `read` or its files"
        ) from error


def _describe(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def require_label(example: str, label: Any, label_names: tuple[str, ...], remedy: str) -> None:
    """Raises a `UserError` about `example` unless `label` is -1 or an index into `label_names`."""
    try:
        allowed = -1 <= operator.index(label) < len(label_names)
    except TypeError:
        allowed = False
    if not allowed:
        choices = ", ".join(f"{number} ({name})" for number, name in enumerate(label_names))
        raise UserError(
            f"{example} must have the label {choices} or -1 (unlabelled), got {label!r}; {remedy}"
        )


def _require_text(example: str, text: Any) -> None:
    """Raises a `UserError` about `example` unless `text` is a str that UTF-8 can encode."""
    if not isinstance(text, str):
        raise UserError(
            f"{example} must have a text of type str, got {text!r:.40} of type "
            f"{type(text).__name__}; convert it in its method `read`"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{example} must have a text that UTF-8 can encode, but character {error.start} is "
            f"{text[error.start]!r}; replace it in its method `read`"
        ) from None


class TokenWriter:
    """Collects the tokens of a data set, then writes them to a folder."""

    def __init__(self, source: Source, tokeniser: Tokeniser, tokeniser_entry: Any):
        """Takes the tokeniser's entry of meta.json: of the default tokeniser only a version."""
        self._source, self._tokeniser = source, tokeniser
        self._tokeniser_entry = tokeniser_entry
        self._ids: dict[str, int] = {}  # of every distinct word, by order of discovery
        self._splits: dict[str, tuple[array, array, array]] = {}  # words, offsets and labels
        self._digest = hashlib.sha256()  # of labels and texts
        if not isinstance(tokeniser_entry, int):
            self._digest.update(json.dumps(tokeniser_entry, sort_keys=True).encode())

    def tokenise(self, split: str, advance: Callable[[int], object]) -> None:
        """Reads and tokenises a split, calling `advance(1)` after each example.

        Raises:
          UserError: an example cannot be read, or the tokeniser returns no proper words.
        """
        ids, words, offsets, labels = self._ids, array("i"), array("q", [0]), array("b")
        for text, label in read_examples(self._source, split):
            try:
                words.extend([ids.setdefault(word, len(ids)) for word in self._tokeniser(text)])
            except Exception as error:
                raise UserError(
                    f"tokeniser {type(self._tokeniser).__name__} raised {_describe(error)} on row "
                    f"{len(labels)} of split {split}; fix its `__call__`"
                ) from error
            offsets.append(len(words))
            labels.append(label)
            self._digest.update(f"{split}\t{label}\t{text}\n".encode())
            advance(1)
        self._splits[split] = words, offsets, labels

    def write(self, folder: Path) -> None:
        """Writes every split, the lexicon and, last, `meta.json`.

        Raises:
          UserError: a word is empty, has a line break, or is no str.
          OSError: a file cannot be written.
        """
        self._require_words()
        lexicon = sorted(self._ids)
        rank = np.empty(len(lexicon), np.int32)  # by id: the index of the word in the lexicon
        rank[[self._ids[word] for word in lexicon]] = np.arange(len(lexicon), dtype=np.int32)
        (folder / "lexicon.txt").write_bytes("\n".join(lexicon).encode())
        for split, (words, offsets, labels) in self._splits.items():
            np.save(folder / f"{split}.words.npy", rank[np.array(words, np.int32)])
            np.save(folder / f"{split}.offsets.npy", np.array(offsets, np.int64))
            np.save(folder / f"{split}.labels.npy", np.array(labels, np.int8))
        meta = {
            "dataset": self._source.name,
            "version": self._source.version,
            "tokeniser": self._tokeniser_entry,
            "splits": {split: len(labels) for split, (_, _, labels) in self._splits.items()},
            "sha256": self._digest.hexdigest(),
            "files_sha256": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        }
        meta["meta_sha256"] = meta_sha256(meta)
        (folder / "meta.json").write_text(json.dumps(meta, indent=2))

    def _require_words(self) -> None:
        """Raises a `UserError` unless a file with one word per line can hold every word."""
        for word in self._ids:
            if not isinstance(word, str) or not word or "\n" in word:
                raise UserError(
                    f"tokeniser {type(self._tokeniser).__name__} must return words that are "
                    f"non-empty and have no line break, got {word!r:.40}; fix its `__call__`"
                )
