"""What was found, kept piece by piece, so that what was stopped goes on where it was."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import write_atomically


class Kept:
    """Pieces of plain JSON in a folder: each is made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}  # that each piece took

    def path(self, name: str) -> Path:
        """Returns where a piece is kept."""
        return self.folder / f"{name.replace(' ', '-')}.json"

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the piece called `name`, which `make` makes if it is not there yet.

        Raises:
          UserError: the piece is damaged.
        """
        path, begun = self.path(name), time.perf_counter()
        if not path.exists():
            found = make()
            piece = {"seconds": time.perf_counter() - begun, "found": found}
            write_atomically(path, json.dumps(piece).encode())
        try:
            piece = json.loads(path.read_bytes())
            self.seconds[name] = piece["seconds"]
            return piece["found"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged; delete it, and it is made again") from None
