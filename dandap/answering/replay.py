"""A computation that is recorded once as a CUDA graph and then replayed.

A token of a 10.8 B model is 2,500 to 5,000 kernels, which an H200 computes in 15 to 30 ms and whose
launches took the host 52 to 106 ms. A graph launches them all at once.
"""

from collections.abc import Callable
from functools import partial

import torch

from dandap.base.processes import is_sharded
from dandap.errors import first_line

_refused = False  # a model that cannot be recorded is not tried batch by batch


def can_record(device: torch.device) -> bool:
    """Say whether computations on a device may be recorded; a sharded base's processes talk."""
    return device.type == "cuda" and not is_sharded()


class Replayed:
    """Does a computation on one tensor, which may change others in place, and then replays it.

    It must be the same at every call, with tensors of the same shapes at the same places. The first
    call runs as it is, so that libraries are loaded and kernels chosen; the second records. What a
    call returns is overwritten by the next. The computation is not kept: it would keep its owner,
    whose memory the next batch needs.
    """

    def __init__(self):
        self.has_run = False
        self.replay: Callable[[], torch.Tensor] | None = None

    def __call__(
        self, work: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
    ) -> torch.Tensor:
        """Return what `work` makes of a tensor."""
        if self.has_run and self.replay is None:
            self.given = given.clone()
            self.replay = recorded(partial(work, self.given))
        self.has_run = True
        if self.replay is None:
            return work(given)
        self.given.copy_(given)
        return self.replay()


def recorded(work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor] | None:
    """Return a function that replays `work`, or None where it cannot be recorded.

    Recording computes nothing. Code that waits for the GPU (a model's own, with
    --trust_remote_code) cannot be recorded, and a line says so once.
    """
    global _refused
    if _refused:
        return None
    try:
        graph = torch.cuda.CUDAGraph()
        # The stream again, because a recording that fails leaves its own behind as the current one.
        # Of this thread alone: another may be loading the next training step meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, capture_error_mode="thread_local"),
        ):
            output = work()
    except RuntimeError as error:
        # Where memory ran out, ending the recording may fail in its turn and hide it.
        if torch.OutOfMemoryError in (type(error), type(error.__context__)):
            raise torch.OutOfMemoryError("no memory to record a step") from error
        _refused = True
        print(f"tokens are launched kernel by kernel: CUDA graphs failed ({first_line(error)})")
        return None

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay
