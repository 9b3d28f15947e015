"""Prints a page's runnable shell commands, one a line; trainings get flags for a small size."""

import re
import shlex
import sys
from pathlib import Path

SMALL = (
    "--data.train-examples 512 --data.validation-examples 256 --data.max-tokens 200"
    " --train.epochs 2"
)
OURS = ("python scripts/", "pip install ")


def commands(page: str) -> list[str]:
    """Returns the commands of shell blocks, without comments; trainings get `SMALL` appended."""
    blocks = re.findall(r"^```\w*[^\n]*\n.*?^```$", page, re.MULTILINE | re.DOTALL)
    shell = "\n".join(block.strip("`") for block in blocks if block.startswith("```\n"))
    lines = [
        " ".join(shlex.split(line, comments=True, posix=False))
        for line in shell.replace("\\\n", " ").splitlines()
    ]
    ours = [line for line in lines if line.startswith(OURS)]
    return [f"{line} {SMALL}" if "scripts/train.py" in line else line for line in ours]


if __name__ == "__main__":
    print("\n".join(commands(Path(sys.argv[1]).read_text())))
