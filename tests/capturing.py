"""Fake CUDA graphs on a CPU: record the operations, then replay them without Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dandap.answering import cuda_graph, tree_decoder


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for a number, which no graph can")
        results = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, results))
        return results


class Capturing:
    """A replacement for `cuda_graph.capture` that counts its replays."""

    replays = 0

    def __call__(self, work):
        with _Recorder() as recorder:
            output = work()
        is_first = True  # unlike a capture, recording already computed the result

        def replay():
            nonlocal is_first
            self.replays += 1
            for operation, args, kwargs, results in [] if is_first else recorder.calls:
                replayed = operation(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(replayed), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            is_first = False
            return output

        return replay


def capture_on_cpu(monkeypatch) -> Capturing:
    """Make the decoder capture its steps with `Capturing`, and return it."""
    capturing = Capturing()
    monkeypatch.setattr(tree_decoder, "can_capture", lambda device: not cuda_graph._disabled)
    monkeypatch.setattr(cuda_graph, "run_eagerly", lambda work: work())
    monkeypatch.setattr(cuda_graph, "capture", capturing)
    return capturing
