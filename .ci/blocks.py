"""Prints the runnable shell commands of a page, one per line, or with --python its Python code.

Trainings get a small size.
"""

import re
import shlex
import sys
from pathlib import Path

SMALL = (
    "--data.train-examples 512 --data.validation-examples 256 --data.max-tokens 200"
    " --train.epochs 2 --name quickstart"
)
SMALL_RECIPE = """
import bilstm_attn
load_recipe, small = bilstm_attn.load_recipe, {"data.train_examples": 512, "data.max_tokens": 200}
small |= {"data.validation_examples": 256, "train.epochs": 2}
bilstm_attn.load_recipe = lambda name: load_recipe(name).replace(small)
"""
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


def python_code(page: str) -> str:
    """Returns the code of Python blocks without a title; `load_recipe` returns small recipes."""
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return SMALL_RECIPE + "\n".join(blocks)


if __name__ == "__main__":
    *flags, path = sys.argv[1:]
    text = Path(path).read_text()
    print(python_code(text) if flags == ["--python"] else "\n".join(commands(text)))
