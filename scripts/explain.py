"""Shows what a run looks at: `python scripts/explain.py RUN [TEXT | --split test --limit 50]`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from bilstm_attn.config import BackendChoice
from bilstm_attn.data.token_cache import DataLocations
from bilstm_attn.runtime.cli import parse, run_script
from bilstm_attn.runtime.files import decode_utf8
from bilstm_attn.runtime.xla_flags import configure_process


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The command line."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder, or its model.safetensors alone."""
    text: Annotated[Positional[str | None], arg(metavar="[TEXT]")] = None
    """A review. Without it, reviews are drawn from a split."""
    split: str = "test"
    """Which split: test, train, validation (those held out), or unlabelled."""
    limit: int = 50
    """How many reviews of it."""
    seed: int = 0
    """Draws them."""
    attributions: tuple[str, ...] = ()
    """Names in explain.attribution.ATTRIBUTIONS; none given: attention, gradient_x_input,
    integrated_gradients, leave_one_out."""
    format: Literal["html", "terminal", "png", "json"] = "html"
    """A page, shaded lines, a picture, or JSON lines."""
    out: Path | None = None
    """Where to write it; into the run's folder by default."""
    devices: int | None = None
    """Devices to share each batch; None is every accelerator, or up to 8 cores."""
    backend: BackendChoice = "auto"
    """How the recurrence runs, as in scripts/train.py."""
    locations: Annotated[DataLocations, arg(name="")] = dataclasses.field(
        default_factory=DataLocations
    )


def main(arguments: list[str]) -> int:
    """Explains; returns the exit status."""
    parsed = parse(
        Arguments,
        arguments,
        program="scripts/explain.py",
        description="Shades the words of reviews by how much each had to do with the answer, by "
        "attention and by other attributions.",
    )
    from bilstm_attn.explain.explain_command import run_explanation

    given: dict[str, Any] = dict(vars(parsed))
    if parsed.text is not None:
        given["text"] = decode_utf8(parsed.text.encode("utf-8", "surrogateescape"), "the text")
    return run_explanation(given.pop("run"), **given)


if __name__ == "__main__":
    configure_process()
    run_script(main)
