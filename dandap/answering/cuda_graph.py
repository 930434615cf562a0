"""A computation that is captured once as a CUDA graph and then replayed.

A step of a 10.8 B model is 2,500 to 5,000 kernels. An H200 computed them in 14 to 36 ms, and their
launches took the host 51 to 135. A graph launches them all at once.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

from dandap.errors import first_line

_refused = False  # in this process, which has one base: it is not tried again batch by batch


def can_capture(device: torch.device) -> bool:
    """Say whether computations on a device may be captured."""
    return device.type == "cuda" and not _refused


class CapturedStep:
    """Runs a computation of one tensor, which may change others in place, and then replays it.

    It must be the same at every call, with tensors of the same shapes at the same places. The first
    call runs eagerly, so that libraries are loaded and kernels chosen; the second captures. What a
    call returns is overwritten by the next. The computation is given to each call and not kept: it
    would keep its owner, whose memory the next batch needs.
    """

    def __init__(self):
        self.calls = 0
        self.given: torch.Tensor | None = None  # what the graph reads
        self.replay: Callable[[], torch.Tensor] | None = None

    def __call__(
        self, work: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
    ) -> torch.Tensor:
        """Return what `work` makes of a tensor; once it is captured, `work` is not called."""
        self.calls += 1
        if self.calls == 1:
            return run_eagerly(partial(work, given))
        if self.calls == 2 and not _refused:
            self.given = given.clone()
            self.replay = captured(partial(work, self.given))
        if self.replay is None:  # it could not be captured
            return work(given)
        self.given.copy_(given)
        return self.replay()


def run_eagerly(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return `work()`; if the host waited for the GPU in it, nothing is captured in this process.

    Models' own code may wait, and some of transformers' rotary embeddings. A capture fails there,
    and a failed one leaves torch's generators and allocator as if it went on.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            result = work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    if any("called a synchronizing" in str(warning.message) for warning in noted):
        _refuse("the model's code waits for the GPU")
    return result


def captured(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor] | None:
    """Return a function that replays `work`, or None where it cannot be captured.

    Capturing computes nothing.
    """
    try:
        graph = torch.cuda.CUDAGraph()
        # The stream again, because a capture that fails leaves its own behind as the current one.
        # Of this thread alone: another may be loading the next training step meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            output = work()
    except RuntimeError as error:
        # Ending a capture that went wrong fails in its turn, and hides why.
        cause = error.__context__ or error
        _end_capture()
        if not isinstance(cause, torch.OutOfMemoryError):  # the next batch may fit
            _refuse(first_line(cause))
        return None

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def _refuse(reason: str) -> None:
    global _refused
    _refused = True
    print(f"answers are decoded without CUDA graphs ({reason}): slower, and the same")


def _end_capture() -> None:
    """Capture nothing, with success: torch's generators then know that no capture goes on.

    Where no graph can be captured at all, none has begun.
    """
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty graph
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            pass
