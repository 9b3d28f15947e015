"""The name of a run whose config differs from its recipe.

Without a name of its own, such a trial would occupy the folder of the recipe, and the recipe itself
would then be refused there. So the changed fields become part of the name.
"""

import re
from typing import Any

from bilstm_attn.config import Config, fields_of
from bilstm_attn.runtime.files import text_sha256

MAX_LENGTH = 80  # of a name; longer ones end in a digest
NO_PART_OF_THE_NAME = ("name", "seed")


def name_of_trial(recipe: Config, config: Config) -> str:
    """Returns `quickstart+cell=gru` for a recipe with a changed field.

    Without changed fields, other than name and seed, it is the name of the recipe.
    """
    old, new = fields_of(recipe), fields_of(config)
    changed = [path for path in new if new[path] != old[path] and path not in NO_PART_OF_THE_NAME]
    parts = [f"{path.rpartition('.')[2]}={_plain(new[path])}" for path in changed]
    name = "+".join([recipe.name, *parts])
    if len(name) <= MAX_LENGTH:
        return name
    return f"{name[:MAX_LENGTH]}-{text_sha256(name)[:8]}"


def _plain(value: Any) -> str:
    """Returns a value with `-` for every run of characters that a shell or file system may mind."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).strip("-") or "none"
