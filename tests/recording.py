"""What stands in for a CUDA graph on a CPU: the operations alone are done again, without Python."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dandap.answering import replay, tree_decoder


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waited for a number, which a graph cannot")
        results = operation(*args, **(kwargs or {}))
        self.done.append((operation, args, kwargs or {}, results))
        return results


def recorded(work):
    """Return a replay of `work`'s operations on the same tensors; 'replays' counts them."""
    recording = _Operations()
    with recording:
        output = work()
    computed = [True]  # unlike a graph's, this recording has computed: that is the first replay

    def play():
        recorded.replays += 1
        if computed:
            computed.clear()
            return output
        for operation, args, kwargs, results in recording.done:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return output

    return play


recorded.replays = 0


def record_on_cpu(monkeypatch) -> None:
    """Let the decoder record its steps, by the stand-in."""
    recorded.replays = 0
    monkeypatch.setattr(tree_decoder, "can_record", lambda device: True)
    monkeypatch.setattr(replay, "recorded", recorded)
