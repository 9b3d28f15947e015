"""The report on several models as a folder: Markdown, one HTML file, and figures."""

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from bilstm_attn.explain.faithfulness import FRACTIONS
from bilstm_attn.explain.html import label_of
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.studies.attention_as_explanation.figures import CAPTIONS, draw_figures
from bilstm_attn.studies.attention_as_explanation.measurements import TOP, AttributionMeasures
from bilstm_attn.studies.attention_as_explanation.study_result import UNIFORM, StudyResult

SOURCE = (
    "Published values are computed from Jain and Wallace's own outputs for IMDB (a BiLSTM with "
    "tanh attention, 4,356 test reviews of fewer than 400 words) in the folder graph_outputs of "
    "github.com/successar/AttentionExplanation: evaluate/imdb+lstm+tanh.json; "
    "CorrStats_kendalltau/imdb+lstm+tanh.csv, whose row names are interchanged; and the mean of "
    "the histogram eMaxJDS_Hist/imdb+lstm+tanh.svg. Another of their runs, in the same folder, has "
    "a τ between attention and gradient that is .06 lower, and between attention and leave one out "
    "that is .04 lower."
)
PUBLISHED = {
    "accuracy": ".898",
    "ROC-AUC": ".960",
    "τ attention, gradient": ".437 ± .061",
    "τ attention, leave one out": ".341 ± .070",
    "τ gradient, leave one out": ".517 ± .100",
    "ε-max JSD, mean": ".587",
}
ABOUT_MEASURES = (
    "Comprehensiveness is the drop in the predicted label's probability when the top "
    f"{', '.join(f'{100 * fraction:g}' for fraction in FRACTIONS)} % of the tokens are deleted, "
    "sufficiency the drop when only these are kept, each averaged over these fractions. Fraction "
    "to flip is the smallest fraction of the tokens, out of fifty, whose deletion changes the "
    "predicted label; 1 if none does. Infidelity is the squared error with which an attribution, "
    "scaled optimally per example, predicts the change of the logit when half of the word vectors "
    "are set to zero."
)
ABOUT_ADVERSARIES = (
    "With λ = 0 the adversary only has to match the base model's predictions, so its change of "
    "probability is the error floor of this training budget; read the other rows against it. A λ "
    "here is twice that of Wiegreffe and Pinter's code."
)
NO_CLOSE_ADVERSARY = (
    "No adversary matches the base model's predictions even as closely as the model with uniform "
    "attention does; the guided perceptron uses the attention of the closest adversary."
)


def headline(result: StudyResult) -> dict[str, str]:
    """Returns the quantities that were published for Jain and Wallace's model."""
    attention = result.attention
    metrics = result.task.measure(attention.logits, result.labels)
    values = {"accuracy": _short(metrics["accuracy"]), "ROC-AUC": _short(metrics["roc_auc"])}
    for name, agreement in attention.agreements.items():
        values[f"τ {name}"] = f"{_short(agreement.mean)} ± {_short(agreement.spread)}"
    return values | {"ε-max JSD, mean": _short(attention.adversary.mean())}


def _short(value: float) -> str:
    """Formats a number like the published values.

    >>> _short(0.4372), _short(-0.061), _short(math.nan)
    ('.437', '-.061', '–')
    """
    if math.isnan(value):
        return "–"
    return ("-" if value < 0 else "") + f"{abs(value):.3f}".removeprefix("0")


def write_report(results: Sequence[StudyResult], folder: Path) -> None:
    """Writes `report.md`, `report.html` and the figures into a folder.

    Raises:
      UserError: a file cannot be written.
    """
    figures = {result.name: draw_figures(result) for result in results}
    for number, drawn in enumerate(figures.values(), 1):
        for figure, data in drawn.items():
            write_atomically(folder / f"{number}-{figure}.png", data)
    text = markdown(results, figures)
    write_atomically(folder / "report.md", text.encode())
    write_atomically(folder / "report.html", as_html(text, figures).encode())


def markdown(results: Sequence[StudyResult], figures: dict[str, dict[str, bytes]]) -> str:
    """Returns the report as Markdown; `figures` are PNGs by model and figure name."""
    lines = ["# Is attention an explanation?", ""]
    lines += [f"- **{result.name}**: {result.description}" for result in results]
    values = {result.name: headline(result) for result in results}
    lines += ["", f"± is the standard deviation over examples. {SOURCE}", ""]
    rows = [
        [quantity, published, *(values[result.name][quantity] for result in results)]
        for quantity, published in PUBLISHED.items()
    ]
    lines += _table(["", "published", *values], rows)
    for number, result in enumerate(results, 1):
        lines += ["", f"## {result.name}", "", *_attention(result)]
        for name in figures[result.name]:
            lines += ["", f"![{CAPTIONS[name]}]({number}-{name}.png)", "", CAPTIONS[name]]
        lines += _attributions(result.attributions)
        lines += _auxiliary(result)
        lines += _times(result)
    return "\n".join(lines) + "\n"


def _attention(result: StudyResult) -> list[str]:
    """Returns the list of what Jain and Wallace's experiments show."""
    lines = [
        f"- τ of {name}: p ≤ 0.05 for {100 * agreement.significant:.0f} % of the examples"
        for name, agreement in result.attention.agreements.items()
    ]
    median = np.median(result.attention.permutation)
    return [*lines, f"- median over examples of the change by permutation: {median:.4f}"]


def _auxiliary(result: StudyResult) -> list[str]:
    """Returns the table of auxiliary models, and notes on it."""
    models = [*result.auxiliary, *(model for _, model in result.trade_off)]
    if not models:
        return []
    lines = ["", "### Auxiliary models", ""]
    if not result.other_seeds:
        lines += ["There is no finished run of this recipe with another seed.", ""]
    rows = [
        [
            model.name,
            f"{model.accuracy:.3f}",
            "–" if model.divergence is None else f"{model.divergence:.3f}",
            f"{model.probability_change:.3f}",
        ]
        for model in models
    ]
    lines += _table(["", "accuracy", "JSD of attention", "change of probability"], rows)
    if result.trade_off:
        lines += ["", ABOUT_ADVERSARIES]
        changes = {model.name: model.probability_change for model in models}
        if min(model.probability_change for _, model in result.trade_off) > changes[UNIFORM]:
            lines += ["", NO_CLOSE_ADVERSARY]
    return lines


def _attributions(measures: AttributionMeasures) -> list[str]:
    """Returns the tables of the attributions' faithfulness and agreement."""
    names, errors = list(measures.faithfulness), measures.completeness_errors
    head = ["", "comprehensiveness ↑", "sufficiency ↓", "fraction to flip ↓", "infidelity ↓"]
    rows = [
        [label_of(name), *(f"{values.mean():.3f}" for values in each)]
        for name, each in measures.faithfulness.items()
    ]

    def cell(row: int, column: int) -> str:
        if row == column:
            return ""
        first, second = sorted([row, column])
        agreement, overlap = measures.agreements[names[first], names[second]]
        return (
            f"{agreement.mean:.2f} ({100 * agreement.significant:.0f} %)"
            if row < column
            else f"{overlap.mean():.2f}"
        )

    return [
        "",
        "### Faithfulness of each attribution",
        "",
        f"Means over {len(errors):,} examples; ↑ higher is better, ↓ lower is better. "
        + ABOUT_MEASURES,
        "",
        "Completeness error of integrated gradients (the attributions' sum against the change of "
        f"the logit): 90th percentile {np.percentile(errors, 90):.2g}, maximum {errors.max():.2g}.",
        "",
        *_table(head, rows),
        "",
        "Agreement of the attributions. Above the diagonal: Kendall's τ, with the fraction of "
        f"examples with p ≤ 0.05. Below it: the fraction of the top {TOP} tokens that two "
        "attributions share.",
        "",
        *_table(
            ["", *map(label_of, names)],
            [
                [label_of(name), *(cell(row, column) for column in range(len(names)))]
                for row, name in enumerate(names)
            ],
        ),
    ]


def _times(result: StudyResult) -> list[str]:
    """Returns the table of computation times, compared with the reference loops."""
    examples, some = len(result.labels), len(result.attributions.completeness_errors)

    def total_of(matches: Callable[[str], bool]) -> float:
        return sum(value for name, value in result.seconds.items() if matches(name))

    total = total_of(lambda name: not name.startswith("reference"))
    attributions = total_of(lambda name: name.startswith("attributions"))
    experiments = result.attention.seconds
    auxiliary = total - attributions - sum(experiments.values())

    def row(name: str, seconds: float, count: int, loop: float | None) -> list[str]:
        each = seconds / count
        loops = ["–", "–"] if loop is None else [f"{loop:.2f}", f"{loop / each:.0f}"]
        return [name, f"{seconds:.0f}", f"{each:.3f}", *loops]

    rows = [
        row(name, seconds, examples, result.loop_seconds.get(name))
        for name, seconds in experiments.items()
    ]
    name = f"attributions and their faithfulness, {some:,} examples"
    rows.append(row(name, attributions, some, result.loop_seconds.get("attributions")))
    if result.auxiliary:
        rows.append(["auxiliary models", f"{auxiliary:.0f}", "–", "–", "–"])
    rows.append(["total", f"{total:.0f}", "–", "–", "–"])
    head = [
        "seconds",
        f"{examples:,} examples",
        "per example",
        "per example, reference loop",
        "speed-up",
    ]
    return ["", "### Time", "", *_table(head, rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    top, *below = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, *rows))
    return [f"| {top} |", "|---" * len(head) + "|", *(f"| {line} |" for line in below)]


STYLE = """
:root { color-scheme: light dark; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.6;
  font-family: system-ui, "Liberation Sans", sans-serif; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td, th { padding: .25rem .75rem; border-bottom: 1px solid #8886; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""


def as_html(text: str, figures: dict[str, dict[str, bytes]]) -> str:
    """Returns the report's Markdown as one HTML file with inline figures."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for number, drawn in enumerate(figures.values(), 1):
        for figure, data in drawn.items():
            inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            body = body.replace(f'src="{number}-{figure}.png"', f'src="{inline}"')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Is attention an explanation?</title><style>{STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
