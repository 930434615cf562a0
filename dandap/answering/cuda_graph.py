"""Capture a decoding step as a CUDA graph and replay it.

A step of a 10.8B model has 2,500 to 5,000 kernels. An H200 computes them in 14 to 36 ms, but
launching them one by one takes 51 to 135 ms.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch

from dandap.errors import first_line

_disabled = False  # for this process, after a failure


def can_capture(device: torch.device) -> bool:
    """Return whether steps on a device can be captured."""
    return device.type == "cuda" and not _disabled


class CapturedStep:
    """Runs a function of one tensor, then replays it as a graph.

    The function must do the same work in every call, on tensors of fixed shapes and addresses,
    which it may modify. The first call is eager (loads libraries, selects kernels), the second
    captures. The next call overwrites the result. The function is not stored, which would keep the
    decoder's memory alive.
    """

    def __init__(self):
        self.calls = 0
        self.input: torch.Tensor | None = None  # the graph's input
        self.replay: Callable[[], torch.Tensor] | None = None

    def __call__(
        self, work: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor
    ) -> torch.Tensor:
        """Return `work(tensor)`, by replay once it is captured."""
        self.calls += 1
        if self.calls == 1:
            return run_eagerly(partial(work, tensor))
        if self.calls == 2 and not _disabled:
            self.input = tensor.clone()
            self.replay = capture(partial(work, self.input))
        if self.replay is None or self.input is None:
            return work(tensor)
        self.input.copy_(tensor)
        return self.replay()


def run_eagerly(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return `work()`; disable capturing if it synchronizes with the GPU.

    Remote code and some rotary embeddings do. Capturing them would fail and leave torch's
    generators and allocator in capture mode.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    if any("called a synchronizing" in str(warning.message) for warning in caught):
        _disable("the model's code waits for the GPU")
    return result


def capture(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor] | None:
    """Return a function that replays `work`, or None if it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with _capturing(graph):
            output = work()
    except RuntimeError as error:
        # Ending a failed capture raises too, and hides the cause. An empty capture afterwards
        # resets torch's generators.
        cause = error.__context__ or error
        with suppress(RuntimeError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the graph is empty
            with _capturing(torch.cuda.CUDAGraph()):
                pass
        if not isinstance(cause, torch.OutOfMemoryError):  # the next batch may fit
            _disable(first_line(cause))
        return None

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    # Restore the current stream, which a failed capture does not. thread_local: another thread may
    # prefetch the next training step.
    with (
        torch.cuda.stream(torch.cuda.current_stream()),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        yield


def _disable(reason: str) -> None:
    global _disabled
    _disabled = True
    print(f"decoding without CUDA graphs ({reason}): slower, same answers")
