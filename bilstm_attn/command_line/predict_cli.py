"""Predicts the labels of texts: `python scripts/predict.py RUN "A film to see twice."`."""

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg

from bilstm_attn.config import require
from bilstm_attn.errors import UserError
from bilstm_attn.explain.text_shading import shade_words
from bilstm_attn.runtime.cli import PluginNames, parse
from bilstm_attn.runtime.files import decode_utf8
from bilstm_attn.runtime.plugins import load_plugins


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or an exported model.safetensors."""
    text: Annotated[Positional[str | None], arg(metavar="[TEXT]")] = None
    """A text. Without it, and without --file, texts come from standard input, one per line."""
    file: Path | None = None
    """A file of texts, one per line."""
    plugin: PluginNames = ()
    """A plug-in to load: a Python file, a module or an installed entry point; may be repeated."""
    top: int = 5
    """Number of words of greatest attention to list."""


def show_prediction(prediction, top: int) -> None:
    """Prints one prediction, its words shaded from the least to the most attention."""
    console = Console(highlight=False)
    colour = "green" if prediction.label == prediction.last_label else "red"
    line = Text.assemble((prediction.label, f"bold {colour}"))
    console.print(line + f"  probability of {prediction.last_label} {prediction.probability:.4f}")
    if prediction.read < prediction.given:
        console.print(f"only the last {prediction.read} of {prediction.given} words are read")
    listed = prediction.top(top)
    if not listed:
        return
    words = (f"{prediction.text[word.start : word.stop]} {word.weight:.3f}" for word in listed)
    console.print("most attention  " + ", ".join(words), markup=False)
    least = min(word.weight for word in prediction.words)
    spans = [(word.start, word.stop) for word in prediction.words]
    # Scaled from the minimum, so that near-uniform attention still shows contrast.
    weights = [word.weight - least for word in prediction.words]
    shaded = shade_words(prediction.text, spans, weights, signed=False)
    if console.color_system:
        console.print(shaded)


def main(arguments: list[str], program: str = "scripts/predict.py") -> int:
    """Predicts; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program=program,
        description="Predicts the label of a text, or of each line of a file as JSON lines.",
    )
    load_plugins(parsed.plugin)
    require(parsed.top > 0, f"--top must be above 0, got {parsed.top}")
    if parsed.text is None and parsed.file is None and sys.stdin.isatty():
        print("reading texts from standard input, one per line", file=sys.stderr)
    if parsed.text is not None and parsed.file is not None:
        raise UserError("give a text or --file, not both")
    from bilstm_attn.inference.predict import Predictor, predict_lines
    from bilstm_attn.training.opened_run import model_file

    predictor = Predictor(model_file(parsed.run))
    if parsed.text is not None:
        raw = parsed.text.encode("utf-8", "surrogateescape")
        show_prediction(predictor([decode_utf8(raw, "the text")])[0], parsed.top)
        return 0
    try:
        source = parsed.file.open("rb") if parsed.file else nullcontext(sys.stdin.buffer)
    except OSError as error:
        raise UserError(f"cannot read {parsed.file}: {error.strerror}; give another file") from None
    with source as lines:
        failed = predict_lines(
            predictor, lines, parsed.top, lambda line: print(json.dumps(line), flush=True)
        )
    if failed:
        raise UserError(f'{failed} lines have no prediction; see "error" in their JSON lines')
    return 0
