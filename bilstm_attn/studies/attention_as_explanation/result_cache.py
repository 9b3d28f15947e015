"""A cache of finished results on disk, so that an interrupted study resumes."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilstm_attn.errors import UserError
from bilstm_attn.runtime.files import write_atomically


class ResultCache:
    """Named results in a folder, one JSON file each."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}
        """Seconds that computing each result took."""

    def path(self, name: str) -> Path:
        """Returns the file of a result."""
        return self.folder / f"{name.replace(' ', '-')}.json"

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Returns the cached result called `name`, computing and storing it if it is missing.

        Args:
          name: identifies the result; spaces become hyphens in the file name.
          compute: returns the result as plain JSON.

        Raises:
          UserError: the file is damaged.
        """
        path, start = self.path(name), time.perf_counter()
        if not path.exists():
            result = compute()
            record = {"seconds": time.perf_counter() - start, "result": result}
            write_atomically(path, json.dumps(record).encode())
        try:
            record = json.loads(path.read_bytes())
            self.seconds[name] = record["seconds"]
            return record["result"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path} is damaged; delete it to compute it again") from None
