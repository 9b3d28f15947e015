"""Shades the words of a text by their weights, for a terminal."""

from collections.abc import Sequence
from unicodedata import category

from rich.color import Color
from rich.style import Style
from rich.text import Text

YELLOW, BLUE, ORANGE = (255, 255, 0), (90, 160, 230), (255, 160, 60)


def shades_of(weights: Sequence[float], *, signed: bool) -> list[float]:
    """Returns the intensity of each weight's shade: 0 is none, 1 is that of the largest weight.

    Signed weights are scaled from 0, unsigned ones from their minimum, so that near-uniform
    attention still shows contrast.

    >>> shades_of([-1.0, 0.0, 2.0], signed=True)
    [0.5, 0.0, 1.0]
    >>> shades_of([0.25, 0.5], signed=False)
    [0.0, 1.0]
    """
    sizes = [abs(weight) for weight in weights]
    lowest = 0.0 if signed else min(sizes, default=0.0)
    span = max(sizes, default=0.0) - lowest
    return [(size - lowest) / span if span > 0 else 0.0 for size in sizes]


def shade_words(
    text: str, spans: Sequence[tuple[int, int]], weights: Sequence[float], *, signed: bool
) -> Text:
    """Returns `text` with the words at `spans` shaded by their weights.

    Unsigned weights are yellow; signed weights are blue above 0 and orange below.
    """
    # rich drops control characters, which would shift all later spans.
    shaded = Text("".join(c if category(c) != "Cc" or c in "\n\t" else " " for c in text))
    shades = shades_of(weights, signed=signed)
    for (start, stop), weight, shade in zip(spans, weights, shades, strict=True):
        full = YELLOW if not signed else BLUE if weight > 0 else ORANGE
        background = Color.from_rgb(*(round(255 - shade * (255 - part)) for part in full))
        shaded.stylize(Style(color="black", bgcolor=background), start, stop)
    return shaded
