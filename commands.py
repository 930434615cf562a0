"""Start scripts and tools as commands, in any folder: dandap-train, dandap-answer and the others.

`pip install -e .` installs them; pyproject.toml names them. Files are read and written where one
stands; recipes, the demo's data and its base are found in the project's folder.
"""

import dandap.startup  # noqa: F401

from functools import partial
from importlib import import_module

from dandap.cli import run_script


def start(module: str, main: str = "main") -> None:
    """Run a script's main, as `python MODULE.py` does."""
    run_script(getattr(import_module(module), main))


train = partial(start, "fine_tune")
answer = partial(start, "inference")
ensemble = partial(start, "ensemble")
prompts = partial(start, "prompts", "show")
augment = partial(start, "tools.augment")
compare = partial(start, "tools.compare")
explore = partial(start, "tools.explore")
refine = partial(start, "tools.refine")
submit = partial(start, "tools.submit")
app = partial(start, "app")
export = partial(start, "export")
