"""What `scripts/explain.py` does: from a run and its words to a page, a picture or lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from bilstm_attn.config import BackendChoice, require, require_seed
from bilstm_attn.data.sources import DATASETS
from bilstm_attn.data.splits import Examples, split_examples
from bilstm_attn.data.token_cache import DataLocations, TokenCache, prepare_tokens
from bilstm_attn.data.tokenisers import tokenise
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import ATTRIBUTIONS, Attribution
from bilstm_attn.explain.explained import FEWEST_AT_ONCE, LABELS, Explained, explain
from bilstm_attn.explain.html import as_json, make_page
from bilstm_attn.explain.image import draw_reviews
from bilstm_attn.explain.text_shading import shade_words
from bilstm_attn.inference.exported import Exported, load_model
from bilstm_attn.inference.predict import read_text
from bilstm_attn.nn.backend import choose_backend
from bilstm_attn.nn.model import Model
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.registry import look_up
from bilstm_attn.runtime.compile_cache import enable_compile_cache
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.devices import make_mesh
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.training.run_dir import RunDir

Format = Literal["html", "terminal", "png", "json"]
SHOWN = ("attention", "gradient_x_input", "integrated_gradients", "leave_one_out")
MOST_IN_A_PICTURE = 10


class Chosen(NamedTuple):
    """Texts to explain."""

    texts: list[str]
    labels: list[int]  # 1 positive, 0 negative, -1 unknown
    names: list[str]
    about: str


def run_explanation(
    run_or_model: Path,
    *,
    text: str | None,
    split: str,
    limit: int,
    seed: int,
    attributions: Sequence[str],
    format: Format,
    out: Path | None,
    locations: DataLocations,
    devices: int | None,
    backend: BackendChoice,
) -> int:
    """Explains a text, or reviews of a split drawn by seed; returns the exit status.

    Raises:
      UserError: a mistake in the arguments, the run or the data; says what to do.
    """
    require(limit > 0, f"--limit must be above 0, got {limit}")
    require_seed(seed)
    console, run = Console(), RunDir(run_or_model)
    exported = load_model(run_or_model if run_or_model.is_file() else run.exported())
    wanted, note = choose_attributions(attributions, exported)
    reviews = 1 if text is not None else limit
    require(
        format != "terminal" or out is None, "--format terminal writes no file; leave out --out"
    )
    require(
        format != "png" or reviews <= MOST_IN_A_PICTURE,
        f"--format png draws {MOST_IN_A_PICTURE} reviews at most, got --limit {reviews}; lower "
        "it, or give --format html",
    )
    mesh = make_mesh(FEWEST_AT_ONCE, devices)
    enable_compile_cache(console.print)
    model = Model(
        exported.config.model,
        exported.vocabulary.size,
        choose_backend(backend, exported.config, console.print),
    )
    if text is not None:
        read_text(text, exported.vocabulary, exported.config.data.max_tokens)  # or an error
        chosen = Chosen([text], [-1], ["from the command line"], f"One text, given {run_or_model}.")
    else:
        chosen = draw_reviews_of(split, limit, seed, exported, locations, console)
    explained = explain(
        exported,
        model,
        chosen.texts,
        chosen.labels,
        wanted,
        mesh,
        lambda name, total: console.bar(name, total, 0),
    )
    about = chosen.about
    if text is None and min(chosen.labels) >= 0:
        right = np.mean([one.answer == LABELS[one.label] for one in explained])
        about += f" The model is right about {percent(float(right))} of them."
    about += f" Model: {exported.config.name}, seed {exported.config.seed}."
    errors = [one.completeness_error for one in explained if one.completeness_error is not None]
    if errors:
        worst = f"{max(errors):.2g} in the worst review"
        about += f" Integrated gradients add up to the logit's change to within {worst}."
    console.print(" ".join(filter(None, [about, note])))
    if format == "terminal":
        for one, name in zip(explained, chosen.names, strict=True):
            show_review(one, name, wanted, console)
    elif format == "json":
        lines = [
            json.dumps({"name": name} | as_json(one))
            for one, name in zip(explained, chosen.names, strict=True)
        ]
        _write(out, run.folder / "explanations.jsonl", "\n".join(lines).encode() + b"\n", console)
    elif format == "png":
        picture = draw_reviews(explained, chosen.names, wanted)
        _write(out, run.folder / "explanations.png", picture, console)
    else:
        page = make_page(explained, chosen.names, wanted, about=about, note=note)
        _write(out, run.folder / "explanations.html", page.encode(), console)
    return 0


def _write(out: Path | None, default: Path, data: bytes, console: Console) -> None:
    path = out or (default if default.parent.is_dir() else Path(default.name))
    write_atomically(path, data)
    console.print(f"wrote {path} ({len(data) / 2**10:,.0f} KiB)")


def choose_attributions(
    names: Sequence[str], exported: Exported
) -> tuple[dict[str, Attribution], str]:
    """Returns the named attributions, or those that a page shows; and what is to be said of them.

    Raises:
      UserError: there is no such attribution, or the model has no attention to show.
    """
    pooling = exported.config.model.pooling
    has_attention, note = POOLINGS[pooling].uses_attention, ""
    if not has_attention:
        require(
            "attention" not in names,
            f"the model has no attention to show: its pooling is {pooling!r}; choose from "
            f"{', '.join(sorted(set(ATTRIBUTIONS) - {'attention'}))}",
        )
        note = f"This model has no attention: its pooling is {pooling}."
    shown = names or [name for name in SHOWN if has_attention or name != "attention"]
    return {name: look_up("attribution", ATTRIBUTIONS, name)() for name in shown}, note


def draw_reviews_of(
    split: str,
    limit: int,
    seed: int,
    exported: Exported,
    locations: DataLocations,
    console: Console,
) -> Chosen:
    """Returns `limit` reviews of a split, or all if there are no more, in their order there.

    Raises:
      UserError: there is no such split, or its texts cannot be had.
    """
    config = exported.config
    tokens = prepare_tokens(config.data.dataset, locations, console)
    examples = split_examples(tokens, split, exported.vocabulary, config)
    order = numpy_generator(seed, "explain").permutation(examples.size)
    drawn = np.sort(order[:limit])
    texts = texts_of(tokens, split, examples, drawn, config.data.dataset, locations)
    rows, labels = examples.rows[drawn].tolist(), examples.labels[drawn].tolist()
    return Chosen(
        texts,
        labels,
        [f"{row} of {split}" for row in rows],
        f"{len(rows)} reviews of {config.data.dataset}'s {split} split, drawn with seed {seed}.",
    )


def texts_of(
    tokens: TokenCache,
    split: str,
    examples: Examples,
    drawn: np.ndarray,
    dataset: str,
    locations: DataLocations,
) -> list[str]:
    """Returns the texts of examples, from where the token cache has its words.

    Raises:
      UserError: the source is not to be had here, or holds other texts.
    """
    part = "train" if split == "validation" else split
    source = DATASETS[dataset](locations.data_dir, locations.archive)
    wanted = dict.fromkeys(examples.rows[drawn].tolist(), "")
    for row, (text, _) in enumerate(source.read(part)):
        if row in wanted:
            wanted[row] = text
    counts = tokens.split(part).counts
    for row, text in wanted.items():
        if len(tokenise(text)) != counts[row]:
            raise UserError(
                f"{dataset} holds other texts here than those that {tokens.folder} was made of; "
                "give the --data-dir it was made with, or delete it"
            )
    return list(wanted.values())


def show_review(
    explained: Explained, name: str, attributions: Mapping[str, Attribution], console: Console
) -> None:
    """Prints a review once for every attribution, its words shaded."""
    label = "" if explained.label < 0 else f", label {LABELS[explained.label]}"
    console.print(
        f"review {name}: {explained.answer}{label}, probability of positive "
        f"{explained.probability:.4f}"
    )
    skipped = len(explained.spans) - explained.read
    if skipped:
        console.print(f"only the last {explained.read} of {len(explained.spans)} words are read")
    spans = explained.spans[skipped:]
    for which, attribution in attributions.items():
        weights = explained.weights[which]
        top = np.argsort(-np.abs(weights), kind="stable")[:5]
        words = (f"{explained.text[slice(*spans[at])]} {weights[at]:.3g}" for at in top)
        console.print(f"{which}: {', '.join(words)}")
        if console.rich.color_system:
            console.rich.print(
                shade_words(explained.text, spans, weights.tolist(), signed=attribution.signed)
            )
