"""Work that Python does item by item is shared among as many processes as there are cores."""

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dandap.errors import InputError

Item, Result = TypeVar("Item"), TypeVar("Result")
AT_ONCE = 64  # items that a process is given together
# Items of a pool. What a process looks at is copied for it, because Python counts references within
# objects, and goes with its pool: 200,000 questions took 1.15 GB at most, by one pool 1.41. With
# 1,024 a million took a fifth longer, and no less memory.
OF_A_POOL = 4096
# What the processes do: forked ones find it here, and nothing of it is copied.
_work: Callable | None = None


def map_in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], least: int
) -> Iterator[Result]:
    """Yield work(item) for each item, in order; what `work` raises is raised.

    Fewer items than `least` are worked on here, as they are where processes cannot be forked.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if len(items) < least or cores == 1:
        yield from map(work, items)
        return
    # A collection writes into every object that it looks at. Here or in a process it would copy the
    # memory that they share: 0.8 GB of a million questions'.
    gc.freeze()
    try:
        for first in range(0, len(items), OF_A_POOL):
            yield from _map_in_a_pool(work, items[first : first + OF_A_POOL], cores)
    finally:
        gc.unfreeze()


def _map_in_a_pool(
    work: Callable[[Item], Result], items: Sequence[Item], cores: int
) -> Iterator[Result]:
    global _work
    _work = work
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(cores, mp_context=context, initializer=_begin)
    try:
        with warnings.catch_warnings():
            # Threads of libraries are not there in a forked process, and nothing here asks them.
            warnings.simplefilter("ignore", DeprecationWarning)
            results = pool.map(_call, items, chunksize=AT_ONCE)
        yield from results
    except BrokenProcessPool as error:
        raise InputError(
            "a process that worked on the data was killed, perhaps for want of memory. Free some, "
            "or let it have one core: taskset -c 0 python ..."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _work = None


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends the others
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core has a process already


def _call(item):
    return _work(item)
