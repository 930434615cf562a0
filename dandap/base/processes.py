"""Several processes started by a launcher (accelerate launch, torchrun).

One of them speaks and writes, and some values must be the same in all.
"""

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

from dandap.errors import InputError

T = TypeVar("T")


def process_count() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Say whether this is the process that speaks and writes."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def first_one_speaks():
    """Let only the first process print while this lasts; the others' errors are still printed."""
    if is_first():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def from_first(make: Callable[[], T]) -> T:
    """Make a value (a run folder) in the first process and hand it to all."""
    if process_count() == 1:
        return make()
    from accelerate.utils import broadcast_object_list  # with torch

    box = [make() if is_first() else None]
    broadcast_object_list(box)
    return box[0]


def leave_together() -> None:
    """Close the connections between processes; the first one goes on alone, the others end here.

    They end without Python's clean-up, in which gloo's threads may abort a process ("terminate
    called without an active exception": 3 of 5 runs on a busy machine, none of 4 since; torch
    2.13). The launcher would then stop the first one while it saves.
    """
    if process_count() == 1:
        return
    from accelerate import PartialState  # with torch

    sys.stdout.flush()  # os._exit below flushes nothing
    PartialState().destroy_process_group()
    if not is_first():
        sys.stderr.flush()
        os._exit(0)


def refuse_several(script: str) -> None:
    """Refuse a launcher's several processes, for scripts that run as one."""
    if process_count() > 1:
        raise InputError(
            f"a launcher started {script} as {process_count()} processes; it runs as one. Start it "
            f"with python {script}."
        )
