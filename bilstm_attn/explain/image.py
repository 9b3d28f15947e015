"""Explained reviews as a picture: every word in a box of its weight's colour."""

import io
from collections.abc import Mapping, Sequence

from bilstm_attn.explain.attribution import Attribution
from bilstm_attn.explain.explained import LABELS, Explained
from bilstm_attn.explain.html import label_of
from bilstm_attn.explain.text_shading import shades_of

COLUMNS = 100  # characters a line
COLOURS = {  # told apart by all eyes
    "toward positive": "#2166ac",
    "toward negative": "#d97100",
    "most of its review, toward either": "#7851a9",
}
FOR, AGAINST, SIZE = COLOURS.values()


def lay_out(words: Sequence[str], columns: int = COLUMNS) -> list[list[int]]:
    """Returns which words stand in each line of at most `columns` characters.

    >>> lay_out(["so", "long", "and"], columns=7)
    [[0, 1], [2]]
    """
    lines: list[list[int]] = [[]]
    used = 0
    for at, word in enumerate(words):
        if lines[-1] and used + 1 + len(word) > columns:
            lines.append([])
            used = 0
        used += len(word) + bool(lines[-1])
        lines[-1].append(at)
    return lines


def draw_reviews(
    reviews: Sequence[Explained], names: Sequence[str], attributions: Mapping[str, Attribution]
) -> bytes:
    """Returns a PNG: every review once for each attribution, the words that were read."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    blocks = []
    for review, name in zip(reviews, names, strict=True):
        spans = review.spans[len(review.spans) - review.read :]
        words = [review.text[slice(*place)] for place in spans]
        label = "" if review.label < 0 else f", label {LABELS[review.label]}"
        title = f"review {name}: {review.answer}{label}, {review.probability:.3f} positive"
        blocks += [
            (f"{title}, by {label_of(which)}", words, review.weights[which], one.signed)
            for which, one in attributions.items()
        ]
    layouts = [lay_out(words) for _, words, *_ in blocks]
    height = 2 + sum(len(lines) + 2 for lines in layouts)
    figure = Figure(figsize=(11, 0.22 * height + 0.2), dpi=110)
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set(xlim=(0, COLUMNS + 1), ylim=(height, 0))
    axes.axis("off")
    mono = {"family": "monospace", "fontsize": 9, "va": "center", "parse_math": False}

    def shade(left: int, top: float, width: int, colour: str, alpha: float) -> None:
        corner = left, top + 0.05
        axes.add_patch(Rectangle(corner, width, 0.9, color=colour, alpha=alpha, lw=0))

    for number, (meaning, colour) in enumerate(COLOURS.items()):
        shade(30 * number, 0.0, 2, colour, 0.7)
        axes.text(30 * number + 3, 0.5, meaning, fontsize=9, va="center")
    top = 2.0
    for (title, words, weights, signed), lines in zip(blocks, layouts, strict=True):
        axes.text(0, top + 0.5, title, fontsize=9, weight="bold", va="center", parse_math=False)
        shades = shades_of(weights.tolist(), signed=signed)
        for number, line in enumerate(lines, start=1):
            left = 0
            for at in line:
                colour = SIZE if not signed else FOR if weights[at] > 0 else AGAINST
                shade(left, top + number, len(words[at]), colour, 0.7 * shades[at])
                axes.text(left, top + number + 0.5, words[at], **mono)
                left += len(words[at]) + 1
        top += len(lines) + 2
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
