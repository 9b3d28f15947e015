"""What was found about one model, drawn."""

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bilstm_attn.studies.attention_as_explanation.study_result import Examined, TradeOff

MOST = math.log(2)  # of a Jensen-Shannon divergence, in nats
CLASSES = (("negative", "tab:orange"), ("positive", "tab:blue"))
BINS = 4  # of the greatest attention weight, as in Jain and Wallace, 2019


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
            axes.plot([], [], color=colour, label=f"answer {answer}")
        edges = [
            f"{number / BINS:.2g}–{(number + 1) / BINS:.2g}\n{(bins == number).sum():,} reviews"
            for number in range(BINS)
        ]
        axes.set_yticks(range(BINS), edges)
        axes.set(xlim=(0, most), ylim=(-0.6, BINS - 0.4))
        axes.set(xlabel=label, ylabel="greatest attention weight")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)

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
        for number, (place, label) in enumerate(label_points(examined.trade_off)):
            axes.annotate(
                label,
                place,
                textcoords="offset points",
                # Below and above in turn, since some lie beside each other.
                xytext=(-3, 6) if number % 2 else (5, -12),
                horizontalalignment="right" if number % 2 else "left",
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


def label_points(trade_off: TradeOff) -> list[tuple[tuple[float, float], str]]:
    """Returns where to write which strengths: one label for points that lie on each other."""
    top = max(one.change for _, one in trade_off) or 1.0
    labels: list[tuple[tuple[float, float], str]] = []
    for strength, one in trade_off:
        place = one.divergence or 0.0, one.change
        if labels:
            last, label = labels[-1]
            if math.hypot((place[0] - last[0]) / MOST, (place[1] - last[1]) / top) < 0.03:
                labels[-1] = last, f"{label}, {strength:g}"
                continue
        labels.append((place, f"λ {strength:g}"))
    return labels


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
