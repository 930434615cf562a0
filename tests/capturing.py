"""What stands in for a CUDA graph on a CPU: the operations alone are done again, without Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dandap.answering import capture, tree_decoder


class _Operations(TorchDispatchMode):
    """Notes each operation with its tensors, and refuses what a graph cannot hold."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waited for a number, which a graph cannot")
        results = operation(*args, **(kwargs or {}))
        self.done.append((operation, args, kwargs or {}, results))
        return results


class Capturing:
    """Captures as dandap.answering.cuda_graph.captured does, and counts the replays."""

    def __init__(self):
        self.replays = 0

    def __call__(self, work):
        operations = _Operations()
        with operations:
            output = work()
        is_computed = True  # unlike a graph, this has computed: that is the first replay

        def replay():
            nonlocal is_computed
            self.replays += 1
            if not is_computed:
                self._again(operations)
            is_computed = False
            return output

        return replay

    def _again(self, operations):
        for operation, args, kwargs, results in operations.done:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture_on_cpu(monkeypatch) -> Capturing:
    """Let the decoder capture its steps, by the stand-in, and return it."""
    capturing = Capturing()
    monkeypatch.setattr(tree_decoder, "can_capture", lambda device: not capture._refused)
    monkeypatch.setattr(capture, "run_eagerly", lambda work: work())
    monkeypatch.setattr(capture, "captured", capturing)
    return capturing
