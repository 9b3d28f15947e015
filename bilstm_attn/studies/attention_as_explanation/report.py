"""An examination of several models as a folder: numbers, figures, and a report that shows both."""

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt

from bilstm_attn.explain.faithfulness import FRACTIONS
from bilstm_attn.explain.html import label_of
from bilstm_attn.nn.metrics import accuracy, roc_auc
from bilstm_attn.runtime.files import write_atomically
from bilstm_attn.studies.attention_as_explanation.figures import CAPTIONS, figures_of
from bilstm_attn.studies.attention_as_explanation.measurements import TOP, Attributions
from bilstm_attn.studies.attention_as_explanation.study_result import EVEN, Examined

SOURCE = (
    "Published are Jain and Wallace's own outputs for IMDB, a BiLSTM with tanh attention, on "
    "4,356 test reviews of fewer than 400 words (github.com/successar/AttentionExplanation, "
    "graph_outputs: evaluate/imdb+lstm+tanh.json, CorrStats_kendalltau/imdb+lstm+tanh.csv, whose "
    "rows carry crossed names, and the mean of the histogram eMaxJDS_Hist/imdb+lstm+tanh.svg). "
    "Another run of theirs there has τ of attention .06 lower with gradient and .04 with leave one "
    "out."
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
    "Words are deleted from the top: comprehensiveness is how far the answer's probability falls "
    f"without the top {', '.join(f'{100 * each:g}' for each in FRACTIONS)} %, sufficiency how far "
    "with these alone, each the mean over these shares; share to flip is the least of fifty "
    "without which the answer is the other one, 1 where none is. Infidelity is the squared error "
    "of an attribution, scaled as suits it best in each review, for the logit's change when half "
    "of the words' vectors are zero."
)
ABOUT_ADVERSARIES = (
    "An adversary of λ 0 is asked for the base's answers alone: what it changes is what its "
    "training fell short of, and the others' may be no less. A λ here is twice that of Wiegreffe "
    "and Pinter's code."
)


def headline(examined: Examined) -> dict[str, str]:
    """Returns the figures that were published for Jain and Wallace's model, of this one."""
    attention = examined.attention
    found = {
        "accuracy": _short(accuracy(attention.logits, examined.labels)),
        "ROC-AUC": _short(roc_auc(attention.logits, examined.labels)),
    }
    for name, one in attention.agreements.items():
        found[f"τ {name}"] = f"{_short(one.mean)} ± {_short(one.spread)}"
    return found | {"ε-max JSD, mean": _short(attention.adversary.mean())}


def _short(value: float) -> str:
    """Returns it as the published figures are written.

    >>> _short(0.4372), _short(-0.061), _short(math.nan)
    ('.437', '-.061', '–')
    """
    if math.isnan(value):
        return "–"
    return ("-" if value < 0 else "") + f"{abs(value):.3f}".removeprefix("0")


def write_report(models: Sequence[Examined], folder: Path) -> None:
    """Writes `report.md`, `report.html` and the figures into a folder.

    Raises:
      UserError: it cannot be written.
    """
    figures = {one.name: figures_of(one) for one in models}
    for number, drawn in enumerate(figures.values(), 1):
        for figure, data in drawn.items():
            write_atomically(folder / f"{number}-{figure}.png", data)
    text = markdown(models, figures)
    write_atomically(folder / "report.md", text.encode())
    write_atomically(folder / "report.html", as_html(text, figures).encode())


def markdown(models: Sequence[Examined], figures: dict[str, dict[str, bytes]]) -> str:
    """Returns the report."""
    lines = ["# Is attention an explanation?", ""]
    lines += [f"- **{one.name}**: {one.about}" for one in models]
    found = {one.name: headline(one) for one in models}
    lines += ["", f"± is the standard deviation over reviews. {SOURCE}", ""]
    rows = [
        [name, published, *(found[one.name][name] for one in models)]
        for name, published in PUBLISHED.items()
    ]
    lines += _table(["", "published", *found], rows)
    for number, one in enumerate(models, 1):
        lines += ["", f"## {one.name}", ""]
        for name, each in one.attention.agreements.items():
            share = f"{100 * each.significant:.0f} %"
            lines.append(f"- τ of {name}: p ≤ 0.05 in {share} of the reviews")
        median = np.median(one.attention.permutation)
        lines.append(f"- median over reviews of the change by permutation: {median:.4f}")
        for name in figures[one.name]:
            lines += ["", f"![{CAPTIONS[name]}]({number}-{name}.png)", "", CAPTIONS[name]]
        lines += _attributions(one.attributions)
        trained = [*one.trained, *(each for _, each in one.trade_off)]
        if trained:
            lines += ["", "### Models trained beside it", ""]
            if not one.seeds:
                lines += ["No finished run of the recipe with another seed lay beside it.", ""]
            rows = [
                [
                    each.name,
                    f"{each.accuracy:.3f}",
                    "–" if each.divergence is None else f"{each.divergence:.3f}",
                    f"{each.change:.3f}",
                ]
                for each in trained
            ]
            lines += _table(["", "accuracy", "JSD of attention", "change of probability"], rows)
            if one.trade_off:
                lines += ["", ABOUT_ADVERSARIES]
            changes = {each.name: each.change for each in trained}
            if one.trade_off and min(each.change for _, each in one.trade_off) > changes[EVEN]:
                lines += [
                    "",
                    "No adversary answers as the model does, not even as nearly as one with even "
                    "attention; the perceptron is under the attention of the nearest.",
                ]
        lines += _times(one)
    return "\n".join(lines) + "\n"


def _attributions(found: Attributions) -> list[str]:
    """Returns the tables of how faithful attributions are, and how far they agree."""
    names, errors = list(found.faithful), found.completeness_errors
    head = ["", "comprehensiveness ↑", "sufficiency ↓", "share to flip ↓", "infidelity ↓"]
    rows = [
        [label_of(name), *(f"{measure.mean():.3f}" for measure in each)]
        for name, each in found.faithful.items()
    ]

    def cell(row: int, column: int) -> str:
        if row == column:
            return ""
        first, second = sorted([row, column])
        agreement, overlap = found.alike[names[first], names[second]]
        return (
            f"{agreement.mean:.2f} ({100 * agreement.significant:.0f} %)"
            if row < column
            else f"{overlap.mean():.2f}"
        )

    return [
        "",
        "### How faithful each attribution is",
        "",
        f"Means over {len(errors):,} reviews; ↑ higher is better, ↓ lower is. " + ABOUT_MEASURES,
        "",
        "Integrated gradients add up to the logit's change to within "
        f"{np.percentile(errors, 90):.2g} in nine of ten reviews, {errors.max():.2g} in the worst.",
        "",
        *_table(head, rows),
        "",
        "How far they agree: above the diagonal Kendall's τ and the share of reviews with "
        f"p ≤ 0.05; below it the share of the top {TOP} tokens that two have in common.",
        "",
        *_table(
            ["", *map(label_of, names)],
            [
                [label_of(name), *(cell(row, column) for column in range(len(names)))]
                for row, name in enumerate(names)
            ],
        ),
    ]


def _times(examined: Examined) -> list[str]:
    """Returns the table of what the experiments took, beside loops over words and draws."""
    reviews, few = len(examined.labels), len(examined.attributions.completeness_errors)

    def all_of(names: Callable[[str], bool]) -> float:
        return sum(value for name, value in examined.seconds.items() if names(name))

    everything = all_of(lambda name: not name.startswith("naive"))
    attributions = all_of(lambda name: name.startswith("attributions"))
    experiments = examined.attention.seconds
    beside = everything - attributions - sum(experiments.values())

    def row(name: str, value: float, of: int, naive: float | None) -> list[str]:
        each = value / of
        loops = ["–", "–"] if naive is None else [f"{naive:.2f}", f"{naive / each:.0f}"]
        return [name, f"{value:.0f}", f"{each:.3f}", *loops]

    rows = [
        row(name, value, reviews, examined.naive.get(name)) for name, value in experiments.items()
    ]
    name = f"attributions and their faithfulness, of {few:,}"
    rows.append(row(name, attributions, few, examined.naive.get("attributions")))
    if examined.trained:
        rows.append(["models trained beside it", f"{beside:.0f}", "–", "–", "–"])
    rows.append(["everything", f"{everything:.0f}", "–", "–", "–"])
    head = ["seconds", f"{reviews:,} reviews", "a review", "a review, naive loop", "times as long"]
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
    """Returns the report's Markdown as one HTML file, its pictures in it."""
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
