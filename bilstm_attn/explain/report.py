"""An examination of several models as a folder: numbers, figures, and a report that shows both."""

import base64
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markdown_it import MarkdownIt

from bilstm_attn.checkpoint import write_file
from bilstm_attn.explain.examine import TOP, Attributions, JainWallace
from bilstm_attn.explain.faithfulness import FRACTIONS
from bilstm_attn.explain.page import label_of
from bilstm_attn.metrics import accuracy, roc_auc

MOST = math.log(2)  # of a Jensen-Shannon divergence, in nats
CLASSES = (("negative", "tab:orange"), ("positive", "tab:blue"))
EVEN = "even attention"  # of the models trained beside one
BINS = 4  # of the greatest attention weight, as in Jain and Wallace, 2019

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


class Trained(NamedTuple):
    """A model that was trained beside another: how far it is from it on the reviews asked about."""

    name: str
    accuracy: float
    change: float  # mean difference of the probabilities
    divergences: list[float] | None  # JSD of its attention from the base's, a review, in nats

    @property
    def divergence(self) -> float | None:
        """The mean divergence."""
        return None if self.divergences is None else float(np.mean(self.divergences))


class Examined(NamedTuple):
    """Everything that was found about one model."""

    name: str
    about: str
    labels: np.ndarray
    attention: JainWallace
    attributions: Attributions
    naive: dict[str, float]  # seconds of a review's experiments, as loops over words and draws
    trained: list[Trained]
    trade_off: list[tuple[float, Trained]]  # by the adversary's strength, rising
    seconds: dict[str, float]  # that each piece took

    @property
    def seeds(self) -> list[Trained]:
        """The recipe's other seeds."""
        return [one for one in self.trained if one.name.startswith("the recipe's")]


def draw_violins(examined: Examined, values: np.ndarray, label: str, most: float) -> bytes:
    """Returns violins of a value a review, by the greatest attention weight and the answer."""

    def draw(axes: Any) -> None:
        bins = np.minimum((examined.attention.greatest_weight * BINS).astype(int), BINS - 1)
        for side, (answer, colour) in enumerate(CLASSES):
            for number in range(BINS):
                chosen = (bins == number) & ((examined.attention.logits > 0) == side)
                if chosen.sum() > 1:
                    parts = axes.violinplot(
                        values[chosen],
                        [number + 0.22 * (2 * side - 1)],
                        orientation="horizontal",
                        widths=0.4,
                        showmedians=True,
                        showextrema=False,
                    )
                    parts["bodies"][0].set_color(colour)
                    parts["cmedians"].set_color(colour)
            axes.plot([], [], color=colour, label=answer)
        edges = [f"{number / BINS:.2g}–{(number + 1) / BINS:.2g}" for number in range(BINS)]
        axes.set_yticks(range(BINS), edges)
        axes.set(xlim=(0, most), ylim=(-0.6, BINS - 0.4))
        axes.set(xlabel=label, ylabel="greatest attention weight")
        axes.legend(title="answer", frameon=False)

    return _figure(draw)


def draw_histograms(
    values: dict[str, np.ndarray], limits: tuple[float, float], label: str
) -> bytes:
    """Returns a histogram of each set of values."""

    def draw(axes: Any) -> None:
        for name, each in values.items():
            style = {"histtype": "step", "linewidth": 1.6, "color": dict(CLASSES).get(name)}
            axes.hist(each, bins=40, range=limits, label=name, **style)
        axes.set(xlabel=label, ylabel="reviews", xlim=limits)
        axes.legend(frameon=False, loc="best")

    return _figure(draw)


def draw_trade_off(examined: Examined) -> bytes:
    """Returns the adversary's curve, with the other trained models beside it."""

    def draw(axes: Any) -> None:
        curve = [one for _, one in examined.trade_off]
        axes.plot(
            [one.divergence for one in curve],
            [one.change for one in curve],
            "o--",
            color="tab:purple",
            label="trained adversary",
        )
        for number, (strength, one) in enumerate(examined.trade_off):
            axes.annotate(
                f"λ {strength:g}",
                (one.divergence, one.change),
                textcoords="offset points",
                xytext=(5, -12 if number % 2 else 5),  # since some lie beside each other
                fontsize=8,
            )
        seeds, names = examined.seeds, [one.name for one in examined.seeds]
        axes.plot(
            [one.divergence for one in seeds],
            [one.change for one in seeds],
            "k^",
            label="other seeds" if seeds else None,
        )
        others = [
            one for one in examined.trained if one.divergence is not None and one.name not in names
        ]
        for one, marker in zip(others, itertools.cycle("sD*Pph"), strict=False):
            axes.plot([one.divergence], [one.change], marker, label=one.name)
        axes.set(xlim=(-0.01, MOST + 0.07), ylim=(0, None))
        axes.set(
            xlabel="mean JSD of attention from the base's, nats (at most 0.693)",
            ylabel="mean change of the probability",
        )
        axes.legend(frameon=False)

    return _figure(draw)


def _figure(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), dpi=90, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def figures_of(examined: Examined) -> dict[str, bytes]:
    """Returns every figure, by its name."""
    attention = examined.attention
    by_class = {
        label: attention.adversary[(attention.logits > 0) == side]
        for side, (label, _) in enumerate(CLASSES)
    }
    taus = {name: one.taus for name, one in attention.agreements.items()}
    figures = {
        "permutation": draw_violins(
            examined, attention.permutation, "median change of the probability", 1.0
        ),
        "adversary": draw_histograms(by_class, (0.0, MOST), "ε-max JSD, nats"),
        "agreement": draw_histograms(taus, (-1.0, 1.0), "Kendall's τ"),
    }
    if examined.seeds:
        apart = np.median(np.array([one.divergences for one in examined.seeds], float), axis=0)
        label = "JSD of attention from the base's, nats: median over seeds"
        figures["seeds"] = draw_violins(examined, apart, label, MOST)
    return figures | ({"trade-off": draw_trade_off(examined)} if examined.trade_off else {})


CAPTIONS = {
    "permutation": "Median change of the probability over 100 permutations of a review's "
    "attention, by its greatest weight.",
    "adversary": "The furthest attention, of five sought for each review, that changes the "
    "probability by at most 0.05.",
    "agreement": "Agreement of attention, gradient and leaving words out, a review each.",
    "seeds": "How far the attention of other seeds is, a review each, by its greatest weight.",
    "trade-off": "Models trained to give the base's answers under other attention, and models "
    "trained beside it.",
}


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
            write_file(folder / f"{number}-{figure}.png", data)
    text = markdown(models, figures)
    write_file(folder / "report.md", text.encode())
    write_file(folder / "report.html", as_html(text, figures).encode())


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
        f"Means over {len(errors):,} of the reviews; ↑ higher is better, ↓ lower is. "
        + ABOUT_MEASURES,
        "",
        f"Integrated gradients add up to the logit's change to within {np.median(errors):.2g} in "
        f"half of the reviews, and {errors.max():.2g} in the worst.",
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
    reviews, seconds = len(examined.labels), examined.attention.seconds
    rows = []
    for name, value in seconds.items():
        naive = examined.naive.get(name)
        loops = ["–", "–"] if naive is None else [f"{naive:.2f}", f"{naive * reviews / value:.0f}"]
        rows.append([name, f"{value:.0f}", f"{value / reviews:.3f}", *loops])

    def all_of(names: Callable[[str], bool]) -> float:
        return sum(value for name, value in examined.seconds.items() if names(name))

    everything = all_of(lambda name: name != "naive")
    attributions = all_of(lambda name: name.startswith("attributions"))
    few = len(examined.attributions.completeness_errors)
    beside = everything - attributions - sum(seconds.values())
    for name, value, of in (
        (f"attributions and their faithfulness, of {few:,}", attributions, few),
        *([("models trained beside it", beside, None)] if examined.trained else []),
        ("everything", everything, None),
    ):
        a_review = "–" if of is None else f"{value / of:.3f}"
        rows.append([name, f"{value:.0f}", a_review, "–", "–"])
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
