"""Words of a text shaded by weight, for a terminal."""

from collections.abc import Sequence
from unicodedata import category

from rich.color import Color
from rich.style import Style
from rich.text import Text

YELLOW, BLUE, ORANGE = (255, 255, 0), (90, 160, 230), (255, 160, 60)


def shades_of(weights: Sequence[float], *, signed: bool) -> list[float]:
    """Returns how strong each weight's shade is, from 0 to 1 for the largest.

    Signed weights' from a weight of 0; others' from the least, since attention may be nearly even.

    >>> shades_of([-1.0, 0.0, 2.0], signed=True)
    [0.5, 0.0, 1.0]
    >>> shades_of([0.25, 0.5], signed=False)
    [0.0, 1.0]
    """
    sizes = [abs(weight) for weight in weights]
    least = 0.0 if signed else min(sizes, default=0.0)
    span = max(sizes, default=0.0) - least
    return [(size - least) / span if span > 0 else 0.0 for size in sizes]


def shade_words(
    text: str, spans: Sequence[tuple[int, int]], weights: Sequence[float], *, signed: bool
) -> Text:
    """Returns `text` with the words at `spans` shaded by their weights' share of the largest.

    Yellow, or if weights are signed blue above 0 and orange below.
    """
    # rich drops control characters, and with them the spans after would move.
    shaded = Text("".join(c if category(c) != "Cc" or c in "\n\t" else " " for c in text))
    shades = shades_of(weights, signed=signed)
    for (start, stop), weight, share in zip(spans, weights, shades, strict=True):
        full = YELLOW if not signed else BLUE if weight > 0 else ORANGE
        background = Color.from_rgb(*(round(255 - share * (255 - part)) for part in full))
        shaded.stylize(Style(color="black", bgcolor=background), start, stop)
    return shaded
