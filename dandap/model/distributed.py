"""Several processes started by a launcher (accelerate launch, torchrun).

One of them prints and writes, work is divided, and some values must be the same in all.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from dandap.errors import InputError
from dandap.files import locked

T = TypeVar("T")
TIMEOUT = timedelta(days=30)  # NCCL's own is 10 minutes, and shares of hours differ by more


def world_size() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_rank() -> int:
    """Return this process's number, from 0; 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Return whether this is the process that prints and writes."""
    return process_rank() == 0


@contextmanager
def only_main_prints() -> Iterator[None]:
    """Let only the first process print; the others' errors are still printed."""
    if is_main_process():
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


def share_of(count: int) -> int:
    """Return about how many of so many questions one process answers."""
    return -(-count // world_size())


def from_main(make: Callable[[], T]) -> T:
    """Return `make()` of the first process in all of them.

    If it raises InputError there, the others end with it.
    """
    if world_size() == 1:
        return make()
    import torch

    box: list[Any] = [None, None]
    if is_main_process():
        try:
            box[0] = make()
        except InputError as error:
            box[1] = error
    torch.distributed.broadcast_object_list(box, group=_gloo(), device=torch.device("cpu"))
    if box[1] is None:
        return box[0]
    if is_main_process():
        raise box[1]
    raise SystemExit(2)


def gather(value: T) -> list[T]:
    """Return every process's value, in the order of their numbers; each waits for the last."""
    if world_size() == 1:
        return [value]
    import torch

    values: list = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=_gloo())
    return values


@cache
def _gloo():
    """Return the group in which processes exchange objects, and wait without a short timeout.

    Gloo on GPUs too: if a process dies, the others notice at once.
    """
    import torch
    from accelerate import PartialState

    PartialState()  # joins the processes, if nothing has before
    return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


@contextmanager
def locked_for_all(folder: Path) -> Iterator[None]:
    """Lock a folder for all our processes; another job would overwrite our files."""
    with ExitStack() as stack:
        from_main(partial(stack.enter_context, locked(folder)))
        if not folder.is_dir():
            raise InputError(
                f"{folder}, made by the first process, is not on this machine. Several machines "
                "need a shared folder (NFS, Lustre): name one with --output_dir or --answers_dir."
            )
        yield


def end_other_processes() -> None:
    """Wait for all processes; then the first one continues alone, and the others end here.

    They end without Python's clean-up, in which gloo's threads may abort a process ("terminate
    called without an active exception": 3 of 5 runs on a busy machine; torch 2.13). The launcher
    would then stop the first one while it saves.
    """
    if world_size() == 1:
        return
    from accelerate import PartialState

    gather(None)
    sys.stdout.flush()  # os._exit below flushes nothing
    PartialState().destroy_process_group()
    if not is_main_process():
        sys.stderr.flush()
        os._exit(0)
    os.environ["WORLD_SIZE"] = "1"  # for world_size: there is nobody to wait for any more


def reject_multiprocess(script: str) -> None:
    """Reject a launcher's several processes, for scripts that run as one."""
    if world_size() > 1:
        raise InputError(
            f"a launcher started {script} as {world_size()} processes; it runs as one. Start it "
            f"with python {script}."
        )
