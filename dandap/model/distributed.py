"""Coordinate the processes of a launcher (accelerate launch, torchrun)."""

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
TIMEOUT = timedelta(days=30)  # NCCL's default of 10 minutes is too short for uneven work


def world_size() -> int:
    """Return the number of processes, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_rank() -> int:
    """Return this process's rank, 0 without a launcher."""
    return int(os.environ.get("RANK", 0))


def is_main_process() -> bool:
    """Return whether this is rank 0, which prints and writes."""
    return process_rank() == 0


@contextmanager
def only_main_prints() -> Iterator[None]:
    """Silence stdout in all processes but the main one."""
    if is_main_process():
        yield
        return
    with Path(os.devnull).open("w") as null, redirect_stdout(null):
        yield


def share_of(count: int) -> int:
    """Return the approximate share of `count` questions per process."""
    return -(-count // world_size())


def from_main(make: Callable[[], T]) -> T:
    """Broadcast `make()` from the main process; its InputError ends all processes."""
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
    """Gather the values of all processes, by rank."""
    if world_size() == 1:
        return [value]
    import torch

    values: list = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=_gloo())
    return values


@cache
def _gloo():
    """Return a gloo group with a long timeout; a dead process fails the others at once."""
    import torch
    from accelerate import PartialState

    PartialState()  # initializes the default group if needed
    return torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


@contextmanager
def locked_for_all(folder: Path) -> Iterator[None]:
    """Lock a folder for all processes of this job."""
    with ExitStack() as stack:
        from_main(partial(stack.enter_context, locked(folder)))
        if not folder.is_dir():
            raise InputError(
                f"{folder}, created by the main process, does not exist on this machine. Use a "
                "shared folder (NFS, Lustre) with --output_dir or --answers_dir."
            )
        yield


def end_other_processes() -> None:
    """Wait for all processes, then exit all but the main one.

    They exit with os._exit: in a normal exit gloo's threads may abort ("terminate called without an
    active exception", 3 of 5 runs on torch 2.13), and the launcher would stop the main process.
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
    os.environ["WORLD_SIZE"] = "1"  # read by world_size


def reject_multiprocess(script: str) -> None:
    """Reject a launcher for a script that runs as one process."""
    if world_size() > 1:
        raise InputError(
            f"got {world_size()} processes for {script}, expected one. Start it with python "
            f"{script}."
        )
