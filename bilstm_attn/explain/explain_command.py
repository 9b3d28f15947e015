"""The explain command: from a run and its texts to a page, a picture, JSON or shaded lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bilstm_attn.config import DataConfig, require
from bilstm_attn.data.sources import DATASETS
from bilstm_attn.data.splits import split_examples
from bilstm_attn.data.token_cache import TokenCache, prepare_tokens
from bilstm_attn.data.tokenisers import make_tokeniser
from bilstm_attn.errors import UserError
from bilstm_attn.explain.attribution import ATTRIBUTIONS, Attribution
from bilstm_attn.explain.explain_options import ExplainOptions
from bilstm_attn.explain.explanation import SMALL_BATCH_SIZE, Explainer, Explanation
from bilstm_attn.explain.html import as_json, make_page
from bilstm_attn.explain.image import draw_texts
from bilstm_attn.explain.text_shading import shade_words
from bilstm_attn.inference.exported import Exported
from bilstm_attn.inference.predict import read_text
from bilstm_attn.nn.pooling import POOLINGS
from bilstm_attn.registry import look_up
from bilstm_attn.runtime.console import Console, percent
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.runtime.prng import numpy_generator
from bilstm_attn.training.opened_run import open_run

DEFAULT_ATTRIBUTIONS = ("attention", "gradient_x_input", "integrated_gradients", "leave_one_out")
TOP_WORDS = 5  # listed per attribution in the terminal


class SelectedTexts(NamedTuple):
    """The texts to explain."""

    texts: list[str]
    labels: list[int]  # -1 is unknown
    names: list[str]
    description: str


def run_explanation(options: ExplainOptions) -> int:
    """Explains a text, or examples drawn from a split; returns the exit status.

    Raises:
      UserError: a mistake in the options, the run or the data.
    """
    options.check()
    console = Console()
    run_dir, exported, model, mesh = open_run(
        options.run, options.backend, options.devices, console, rows=SMALL_BATCH_SIZE
    )
    attributions, note = choose_attributions(options.attributions, exported)
    selected = select_texts(options, exported, console)
    explainer = Explainer(exported, model, mesh, lambda name, total: console.bar(name, total, 0))
    explanations = explainer(selected.texts, selected.labels, attributions)
    about = describe(selected.description, explanations, exported)
    console.print(" ".join(filter(None, [about, note])))
    names = selected.names
    if options.format == "terminal":
        for name, explanation in zip(names, explanations, strict=True):
            print_explanation(explanation, name, attributions, console)
    elif options.format == "json":
        lines = [
            json.dumps({"name": name} | as_json(explanation))
            for name, explanation in zip(names, explanations, strict=True)
        ]
        data = "\n".join(lines).encode() + b"\n"
        _write(options.out, run_dir.folder / "explanations.jsonl", data, console)
    elif options.format == "png":
        data = draw_texts(explanations, names, attributions)
        _write(options.out, run_dir.folder / "explanations.png", data, console)
    else:
        page = make_page(explanations, names, attributions, about=about, note=note)
        _write(options.out, run_dir.folder / "explanations.html", page.encode(), console)
    return 0


def _write(out: Path | None, default: Path, data: bytes, console: Console) -> None:
    path = out or (default if default.parent.is_dir() else Path(default.name))
    write_atomically(path, data)
    console.print(f"wrote {path} ({len(data) / 2**10:,.0f} KiB)")


def describe(description: str, explanations: Sequence[Explanation], exported: Exported) -> str:
    """Returns the line above the explanations: texts, accuracy, model, completeness error."""
    text = description
    if all(explanation.label >= 0 for explanation in explanations):
        correct = np.mean([each.predicted == each.label for each in explanations])
        text += f" Accuracy on them: {percent(float(correct))}."
    text += f" Model: {exported.config.name}, seed {exported.config.seed}."
    errors = [
        explanation.completeness_error
        for explanation in explanations
        if explanation.completeness_error is not None
    ]
    if errors:
        text += f" Largest completeness error of integrated gradients: {max(errors):.2g}."
    return text


def choose_attributions(
    names: Sequence[str], exported: Exported
) -> tuple[dict[str, Attribution], str]:
    """Returns the named attributions, or the default ones, and a note for models without attention.

    Raises:
      UserError: there is no such attribution, or the model has no attention.
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
    chosen = names or [
        name for name in DEFAULT_ATTRIBUTIONS if has_attention or name != "attention"
    ]
    return {name: look_up("attribution", ATTRIBUTIONS, name)() for name in chosen}, note


def select_texts(options: ExplainOptions, exported: Exported, console: Console) -> SelectedTexts:
    """Returns the text of the options, or examples drawn from a split.

    Raises:
      UserError: the model cannot read the text, there is no such split, or its texts are missing.
    """
    if options.text is None:
        return draw_examples(options, exported, console)
    config = exported.config.data
    # Raises an error if the model cannot read the text.
    read_text(options.text, make_tokeniser(config), exported.vocabulary, config.max_tokens)
    description = f"One text, given on the command line to {options.run}."
    return SelectedTexts([options.text], [-1], ["from the command line"], description)


def draw_examples(options: ExplainOptions, exported: Exported, console: Console) -> SelectedTexts:
    """Returns at most `options.limit` random examples of a split, in the split's order.

    Raises:
      UserError: there is no such split, or its texts are missing.
    """
    config = exported.config
    dataset = config.data.dataset
    tokens = prepare_tokens(config.data, options.locations, console)
    split = options.split or ("test" if "test" in tokens.splits else "validation")
    examples = split_examples(tokens, split, exported.vocabulary, config)
    order = numpy_generator(options.seed, "explain").permutation(examples.size)
    chosen = np.sort(order[: options.limit])
    rows, labels = examples.rows[chosen].tolist(), examples.labels[chosen].tolist()
    return SelectedTexts(
        read_texts(tokens, split, rows, config.data, options),
        labels,
        [f"{row} of {split}" for row in rows],
        f"{len(rows)} examples of {dataset}'s {split} split, drawn with seed {options.seed}.",
    )


def read_texts(
    tokens: TokenCache,
    split: str,
    rows: Sequence[int],
    config: DataConfig,
    options: ExplainOptions,
) -> list[str]:
    """Returns the texts of some rows of a split, from the source of the token cache.

    Raises:
      UserError: the source is missing, or its texts differ from the token cache.
    """
    source_split = "train" if split == "validation" else split
    source = DATASETS[config.dataset](options.locations.data_dir, options.locations.archive)
    tokenise = make_tokeniser(config)
    texts = dict.fromkeys(rows, "")
    for row, (text, _) in enumerate(source.read(source_split)):
        if row in texts:
            texts[row] = text
    counts = tokens.split(source_split).counts
    for row, text in texts.items():
        if len(tokenise(text)) != counts[row]:
            raise UserError(
                f"the texts of {config.dataset} differ from those that {tokens.folder} was made "
                "from; give the --data-dir of its preparation, or delete it"
            )
    return list(texts.values())


def print_explanation(
    explanation: Explanation, name: str, attributions: Mapping[str, Attribution], console: Console
) -> None:
    """Prints a text once per attribution, its words shaded, with the words of largest weight."""
    label = f", label {explanation.label_name}" if explanation.label_name else ""
    console.print(
        f"text {name}: predicted {explanation.prediction}{label}, probability of "
        f"{explanation.label_names[-1]} {explanation.probability:.4f}"
    )
    words = len(explanation.spans)
    if explanation.skipped:
        console.print(f"truncated to the last {explanation.words_read} of {words} words")
    spans = explanation.spans[explanation.skipped :]
    for attribution_name, attribution in attributions.items():
        weights = explanation.weights[attribution_name]
        top = np.argsort(-np.abs(weights), kind="stable")[:TOP_WORDS]
        top_words = (f"{explanation.text[slice(*spans[at])]} {weights[at]:.3g}" for at in top)
        console.print(f"{attribution_name}: {', '.join(top_words)}")
        if console.rich.color_system:
            shaded = shade_words(
                explanation.text, spans, weights.tolist(), signed=attribution.signed
            )
            console.rich.print(shaded)
