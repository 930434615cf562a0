"""A fake CUDA device: after `install`, cuda:0 computes on the host and records its activity.

    gpu = fake_gpu.install("sm_80")            computes with CPU kernels
    gpu = fake_gpu.install("sm_80", dry=True)  large tensors have a size but no memory
    with gpu.watched() as seen: ...                 seen.launches, seen.waits, seen.peak

An operation on tensors of both devices fails, as on CUDA. Every kernel is counted as a launch, and
every read from the device as a wait (synchronization), with the project line that caused it. A dry
model of 10.8B parameters fits into a laptop, and its memory is counted exactly.

Import this before torch, which looks for CUDA during import. FAKE_GPU is the path of the
library built from fake_gpu.cpp. Both depend on internals of torch 2.13.
"""

import contextlib
import ctypes
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace

if "torch" in sys.modules:
    raise ImportError("import fake_gpu before torch")
ctypes.CDLL(os.environ["FAKE_GPU"], mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402 (needs the library above)

PROJECT = str(Path(__file__).resolve().parents[2])
DRY_FROM = 1 << 16  # bytes; smaller tensors (lengths, indices) have data in a dry run


@dataclass(frozen=True)
class Kind:
    """Properties of a GPU model."""

    capability: tuple[int, int]
    memory: float  # bytes
    processors: int
    shared: int  # bytes of shared memory per block


KINDS = {
    "sm_75": Kind((7, 5), 15.6e9, 40, 65_536),  # T4
    "sm_80": Kind((8, 0), 84.9e9, 108, 166_912),  # A100
    "sm_89": Kind((8, 9), 25.2e9, 128, 101_376),  # RTX 4090
    "sm_90": Kind((9, 0), 84.9e9, 132, 232_448),  # H100
}


@dataclass
class Seen:
    """Recorded activity of the device."""

    launches: Counter = field(default_factory=Counter)  # by kernel
    waits: Counter = field(default_factory=Counter)  # by (kind, project line)
    peak: int = 0  # bytes

    def waits_in(self, file: str) -> int:
        """Return the number of waits caused by a file or folder of the project."""
        return sum(count for (_, line), count in self.waits.items() if file in line)


class Gpu:
    """The fake device."""

    def __init__(self, kind: Kind, dry: bool):
        self.kind, self.dry, self.seen = kind, dry, Seen()

    @contextlib.contextmanager
    def watched(self):
        """Record activity within this context."""
        before, self.seen = self.seen, Seen()
        torch.ops.fake_gpu.forget_peak()
        try:
            yield self.seen
        finally:
            self.seen.peak = torch.ops.fake_gpu.memory()[1]
            self.seen = before

    def launch(self, name: str) -> None:
        self.seen.launches[name] += 1

    def wait(self, what: str) -> None:
        self.seen.waits[what, _line_of_the_project()] += 1


gpu: Gpu | None = None  # the installed device
_libraries: list[torch.library.Library] = []  # kernels live as long as their library


def install(kind: str, dry: bool = False) -> Gpu:
    """Make cuda:0 a fake GPU of this kind. Call it before importing the project."""
    global gpu
    if gpu is not None:
        raise RuntimeError("a fake GPU is installed already")
    # Import it before CUDA is available, or it looks for its own CUDA library.
    import bitsandbytes  # noqa: F401

    gpu = Gpu(KINDS[kind], dry)
    major, minor = gpu.kind.capability
    torch.ops.fake_gpu.set_up(DRY_FROM if dry else 0, 10 * major + minor)
    _register("_", {}, fallback=_any_operation)
    _register(
        "aten",
        {
            "copy_": _copy,
            # On CUDA these would select cuDNN's kernels.
            **{
                name: partial(_any_operation, getattr(torch.ops.aten, name).default)
                for name in ("convolution", "convolution_backward")
            },
            "_scaled_dot_product_efficient_attention": _efficient,
            "_scaled_dot_product_efficient_attention_backward": _efficient_backward,
            "_scaled_dot_product_flash_attention": _flash,
            "_scaled_dot_product_flash_attention_backward": _flash_backward,
        },
    )
    _register("bitsandbytes", _bitsandbytes())
    _replace_torch_cuda()
    return gpu


def _register(namespace: str, kernels: dict, fallback=None) -> None:
    library = torch.library.Library(namespace, "IMPL")
    # Dynamo must not trace kernels.
    for name, kernel in kernels.items():
        library.impl(name, torch._dynamo.disable(kernel), "CUDA")
    if fallback:
        library.fallback(torch._dynamo.disable(fallback), "CUDA")
    _libraries.append(library)


def _line_of_the_project() -> str:
    """Return the innermost project line of the call stack."""
    frame = sys._getframe(1)
    while frame:
        file = frame.f_code.co_filename
        if file.startswith(PROJECT) and "/rehearsal/" not in file:
            return f"{file[len(PROJECT) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


# ---- Fallback for all operations: the CPU kernel on the same memory, or shapes only.

# The host reads a value or a size from these.
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
INDEXED = {"index", "index_put_", "_index_put_impl_"}  # their indices may be on the host
NO_KERNEL = {"empty", "empty_strided", "resize_", "record_stream"}


def _any_operation(op, *args, **kwargs):
    name = op._schema.name.split("::")[1]
    if name.endswith("_for_cpu") or "mkldnn" in name:
        raise NotImplementedError(f"{op} has no kernel for CUDA")
    _check_devices(name, args, kwargs)
    if name not in NO_KERNEL:
        gpu.launch(name)
    if name in READS or (name in INDEXED and _by_bool(args[1])):
        gpu.wait(name)
    dry = any(map(_is_dry, _tensors((args, kwargs))))
    if name == "_local_scalar_dense" and dry:
        return 0.0 if args[0].is_floating_point() else 0
    return _Call(op, name, dry).run(args, kwargs)


def _tensors(value):
    """Yield all tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _each(value, change):
    """Apply a function to every tensor in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_each(part, change) for part in value)
    return value


def _is_dry(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda" and torch.ops.fake_gpu.is_dry(tensor)


def _host(tensor: torch.Tensor | None) -> torch.Tensor | None:
    if tensor is None or tensor.device.type != "cuda":
        return tensor
    return torch.ops.fake_gpu.as_host(tensor)


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    """Return a meta tensor of the same shape; scalars of the host are unchanged."""
    if tensor.device.type == "cpu" and tensor.dim() == 0:
        return tensor
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")


def _new_dry(shape: torch.Tensor) -> torch.Tensor:
    return torch.ops.fake_gpu.dry(list(shape.size()), list(shape.stride()), shape.dtype)


def _by_bool(indices) -> bool:
    return any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in indices)


def _check_devices(name: str, args, kwargs) -> None:
    """Reject host tensors except scalars, as CUDA does."""
    given = (args[0], args[2:], kwargs) if name in INDEXED else (args, kwargs)
    if any(t.device.type == "cpu" and t.dim() for t in _tensors(given)):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, cuda:0 and cpu")
    if name in INDEXED and any(t.device.type == "cpu" and t.dim() for t in _tensors(args[1])):
        gpu.wait(f"indices of the host for {name}")


class _Call:
    """Runs one operation with the CPU kernel, or on the meta device for shapes only."""

    def __init__(self, op, name: str, dry: bool):
        self.op, self.name, self.dry = op, name, dry
        self.device = "meta" if dry else "cpu"

    def run(self, args, kwargs):
        given, named = self._inputs(args, kwargs)
        named, given = self._without_mixed_types(given, named)
        outs = [a.name for a in self.op._schema.arguments if a.is_out and a.name in kwargs]
        if outs:
            return self._into(outs, given, named, kwargs)
        result = self.op(*given, **named)
        if self.cast is not None:
            result = result.to(self.cast)
        if self.name == "_local_scalar_dense" and gpu.dry and isinstance(result, float):
            return 0.0  # its inputs may have had no data
        return self._back(result, args, kwargs)

    def _inputs(self, args, kwargs):
        """Return the arguments for the CPU kernel."""
        if self.dry and self.name in INDEXED:  # the number of true values decides the shape
            indices = []
            for index in args[1]:
                is_mask = index is not None and index.dtype is torch.bool
                indices += _host(index).nonzero().unbind(1) if is_mask else [index]
            args = (args[0], indices, *args[2:])
        change = _shape if self.dry else _host
        given = [_each(value, change) for value in args]
        for place, argument in enumerate(self.op._schema.arguments[: len(given)]):
            # torch unwraps some scalar tensors to Python numbers.
            is_number = isinstance(given[place], (bool, int, float))
            if is_number and str(argument.type) == "Tensor":
                given[place] = torch.tensor(given[place])
        named = {name: _each(value, change) for name, value in kwargs.items()}
        if named.get("device") is not None:
            named["device"] = torch.device(self.device)
        if "pin_memory" in named:
            named["pin_memory"] = False
        return given, named

    def _without_mixed_types(self, given, named):
        """Split kernels that only CUDA has (16-bit input, float32 output) into two steps."""
        self.cast = None
        if self.name in ("mm", "addmm") and (
            named.pop("out_dtype", None) is not None or self.op._overloadname.startswith("dtype")
        ):
            tensors = [value for value in given if not isinstance(value, torch.dtype)]
            given[:] = _each(tensors, torch.Tensor.float)
            self.op = getattr(
                getattr(torch.ops.aten, self.name), "out" if "out" in named else "default"
            )
        if self.name in ("_softmax", "_log_softmax") and given[2]:
            given[0], given[2] = given[0].float(), False
        backward = self.name in ("_softmax_backward_data", "_log_softmax_backward_data")
        if backward and given[3] != given[0].dtype:
            self.cast, given[3] = given[3], given[0].dtype
        return named, given

    def _into(self, outs, given, named, kwargs):
        """Run an operation with `out` arguments."""
        for name in outs:
            dtype = kwargs[name].dtype if self.cast is None else given[0].dtype
            named[name] = torch.empty(0, dtype=dtype, device=self.device)
        self.op(*given, **named)
        for name in outs:
            if kwargs[name].shape != named[name].shape:
                kwargs[name].resize_(named[name].shape)
            if not self.dry and not _is_dry(kwargs[name]):  # resizing may have made it dry
                _host(kwargs[name]).copy_(named[name])
        results = [kwargs[name] for name in outs]
        return results[0] if len(results) == 1 else tuple(results)

    def _back(self, result, args, kwargs):
        """Return the results on the device. Written arguments are returned themselves."""
        written = {}
        for place, argument in enumerate(self.op._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                written |= dict.fromkeys(argument.alias_info.before_set, value)
        returns = self.op._schema.returns
        results = result if len(returns) > 1 else (result,)
        found = []
        for value, returned in zip(results, returns, strict=len(returns) > 0):
            names = returned.alias_info.before_set if returned.alias_info else ()
            same = next((written[name] for name in names if name in written), None)
            make = _new_dry if self.dry else torch.ops.fake_gpu.as_gpu
            found.append(_each(value, make) if same is None else same)
        return None if not returns else found[0] if len(returns) == 1 else tuple(found)


# ---- Operations with different kernels on CUDA and CPU.


def _copy(self, source, non_blocking=False):
    here, there = source.device.type, self.device.type
    gpu.launch("copy_" if here == there else "memcpy")
    if here != there and source.numel() and not (non_blocking and there == "cuda"):
        gpu.wait(f"copy from {here} to {there}")
    if _is_dry(self) or _is_dry(source):
        if not _is_dry(self):  # a dry source has no data
            _host(self).zero_()
        return self
    _host(self).copy_(_host(source))
    return self


def _scores(query, key, bias, is_causal, scale):
    """Return masked attention scores in float32, for host tensors."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query.float() @ key.float().transpose(-1, -2) * scale
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores


def _repeated(tensor, heads: int):
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _transposed_like(tensor) -> torch.Tensor:
    """Return an empty (batch, heads, length, size) tensor, with heads after length in memory."""
    batch, heads, length, size = tensor.shape
    room = torch.empty(batch, length, heads, size, dtype=tensor.dtype, device="cuda")
    return room.transpose(1, 2)


def _attend(query, key, value, bias, is_causal, scale):
    """Return the output and the log-sum-exp, which is None without data."""
    out = _transposed_like(query)
    if any(map(_is_dry, (query, key, value, out))):
        return out, None
    heads = query.shape[1]
    scores = _scores(_host(query), _repeated(_host(key), heads), _host(bias), is_causal, scale)
    weights = scores.softmax(-1)
    _host(out).copy_(weights @ _repeated(_host(value), heads).float())
    return out, scores.logsumexp(-1)


def _attend_backward(grad, query, key, value, bias, is_causal, scale):
    """Return the gradients of query, key and value."""
    gradients = [_transposed_like(tensor) for tensor in (query, key, value)]
    if any(map(_is_dry, (grad, query, key, value, *gradients))):
        return gradients
    heads = query.shape[1]
    q, upstream = _host(query).float(), _host(grad).float()
    k, v = (_repeated(_host(tensor).float(), heads) for tensor in (key, value))
    weights = _scores(q, k, _host(bias), is_causal, scale).softmax(-1)
    # By hand, because autograd is disabled below its dispatch key.
    of_weights = upstream @ v.transpose(-1, -2)
    centered = of_weights - (of_weights * weights).sum(-1, keepdim=True)
    of_scores = weights * centered * (query.shape[-1] ** -0.5 if scale is None else scale)
    found = [
        of_scores @ k,
        (of_scores.transpose(-1, -2) @ q).unflatten(1, (key.shape[1], -1)).sum(2),
        (weights.transpose(-1, -2) @ upstream).unflatten(1, (key.shape[1], -1)).sum(2),
    ]
    for gradient, numbers in zip(gradients, found, strict=True):
        _host(gradient).copy_(numbers)
    return gradients


def _efficient(
    query, key, value, attn_bias, with_sums, dropout_p=0.0, is_causal=False, *, scale=None
):
    gpu.launch("efficient attention")
    _check_devices("efficient attention", (query, key, value, attn_bias), {})
    if attn_bias is not None and attn_bias.stride(-2) % (16 // query.dtype.itemsize):
        raise RuntimeError(f"attn_bias is not aligned: its rows are {attn_bias.stride(-2)} apart")
    out, sums = _attend(query, key, value, attn_bias, is_causal, scale)
    batch, heads, length, _ = query.shape
    padded = -(-length // 32) * 32 if with_sums else 0
    saved = torch.empty(batch, heads, padded, dtype=torch.float32, device="cuda")
    if with_sums and sums is not None:
        _host(saved)[..., :length] = sums
    seed, offset = (torch.empty((), dtype=torch.long) for _ in range(2))
    return out, saved, seed, offset


def _efficient_backward(
    grad, query, key, value, attn_bias, out, sums, seed, offset, dropout_p, wanted, is_causal=False,
    *, scale=None
):  # fmt: skip
    gpu.launch("efficient attention backward")
    # The workspace of the kernel: one sum per row, and the query gradient in float32.
    work = [torch.empty(query.shape[:3], dtype=torch.float32, device="cuda")]
    if query.dtype.itemsize == 2:
        work.append(torch.empty(query.shape, dtype=torch.float32, device="cuda"))
    gradients = _attend_backward(grad, query, key, value, attn_bias, is_causal, scale)
    del work
    of_bias = torch.empty_like(attn_bias) if attn_bias is not None and wanted[3] else None
    return (*gradients, of_bias)


def _flash(query, key, value, dropout_p=0.0, is_causal=False, debug=False, *, scale=None):
    gpu.launch("flash attention")
    out, sums = _attend(query, key, value, None, is_causal, scale)
    saved = torch.empty(query.shape[:3], dtype=torch.float32, device="cuda")
    if sums is not None:
        _host(saved).copy_(sums)
    state = torch.empty(2, dtype=torch.uint64, device="cuda")
    unused = torch.empty((), dtype=torch.uint64, device="cuda")
    nothing = torch.empty(0, dtype=query.dtype, device="cuda")
    return out, saved, None, None, query.shape[2], key.shape[2], state, unused, nothing


def _flash_backward(
    grad, query, key, value, out, sums, cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed,
    offset, *, scale=None
):  # fmt: skip
    gpu.launch("flash attention backward")
    work = torch.empty(query.shape, dtype=torch.float32, device="cuda")
    gradients = _attend_backward(grad, query, key, value, None, is_causal, scale)
    del work
    return tuple(gradients)


# ---- bitsandbytes: the matrix product with 4-bit weights; all others use the CPU kernels.


def _bitsandbytes() -> dict:
    kernels = {"gemm_4bit": _gemm_4bit}
    for name in (
        "dequantize_4bit", "quantize_4bit", "dequantize_blockwise", "quantize_blockwise",
        "optimizer_update_32bit", "optimizer_update_8bit_blockwise",
    ):  # fmt: skip
        packet = getattr(torch.ops.bitsandbytes, name)
        for overload in packet.overloads():
            key = name if overload == "default" else f"{name}.{overload}"
            kernels[key] = _cpu_kernel(getattr(packet, overload))
    return kernels


def _cpu_kernel(op):
    def kernel(*args, **kwargs):
        return _any_operation(op, *args, **kwargs)

    return kernel


def _gemm_4bit(
    A, B, shapeB, absmax, blocksize, quant_type, bias=None, absmax_8bit=None, absmax_code=None,
    absmax_offset=None,
):  # fmt: skip
    """Multiply with the fused kernel, or with a dequantized copy where bitsandbytes makes one."""
    tensors = (A, B, absmax, bias, absmax_8bit, absmax_code, absmax_offset)
    if any(t is not None and t.device.type != "cuda" for t in tensors):
        raise RuntimeError(
            "gemm_4bit: a tensor is not on cuda, and the kernel would read its address"
        )
    rows = A.numel() // A.shape[-1]
    work = []
    if not _is_fused(A.dtype, rows, shapeB[0], A.shape[-1]):
        gpu.launch("dequantize")
        gpu.launch("linear")
        work.append(torch.empty(shapeB, dtype=A.dtype, device="cuda"))
        if absmax_8bit is not None:
            work += [
                torch.empty(absmax_8bit.shape, dtype=torch.float32, device="cuda") for _ in "12"
            ]
            gpu.seen.launches["dequantize"] += 2
    else:
        gpu.launch("gemm_4bit")
    out = torch.empty((*A.shape[:-1], shapeB[0]), dtype=A.dtype, device="cuda")
    if not any(t is not None and _is_dry(t) for t in (*tensors, out)):
        given = (_host(A), _host(B), shapeB, _host(absmax), blocksize, quant_type)
        result = torch.ops.bitsandbytes.gemm_4bit.default(*given, *map(_host, tensors[3:]))
        _host(out).copy_(result)
    del work
    return out


def _is_fused(dtype, rows: int, outputs: int, inputs: int) -> bool:
    """Return whether bitsandbytes 0.50 runs its fused kernel (backends/cuda/ops.py, simplified)."""
    if rows < 8:
        return True
    if dtype is torch.float32 or (gpu.kind.capability == (7, 5) and dtype is torch.bfloat16):
        return False
    blocks = -(-outputs // 64)
    if blocks < gpu.kind.processors // 2:
        return rows <= 16
    return rows <= (128 if blocks >= 3 * gpu.kind.processors else 32)


# ---- The Python functions of torch.cuda.


def _replace_torch_cuda() -> None:
    kind, generator = gpu.kind, torch.Generator()
    major, minor = kind.capability
    properties = SimpleNamespace(
        name="fake", major=major, minor=minor, total_memory=int(kind.memory),
        multi_processor_count=kind.processors, warp_size=32, gcnArchName="",
        shared_memory_per_block_optin=kind.shared,
    )  # fmt: skip

    def nothing(*given):
        return None

    stream = SimpleNamespace(synchronize=nothing, wait_stream=nothing, cuda_stream=0)
    allocated, peak = (lambda *given, i=i: torch.ops.fake_gpu.memory()[i] for i in (0, 1))
    constants = {
        "is_available is_initialized": True,
        "is_current_stream_capturing": False,
        "current_device _exchange_device _maybe_exchange_device get_sync_debug_mode": 0,
        "device_count": 1,
        "init _lazy_init set_device empty_cache ipc_collect": None,
        "manual_seed manual_seed_all set_sync_debug_mode": None,
        "get_device_capability": kind.capability,
        "get_device_name": "fake",
        "get_device_properties": properties,
        "get_arch_list": "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120".split(),
        "current_stream default_stream": stream,
        "memory_stats": {},
    }
    functions = {
        "synchronize": lambda *device: gpu.wait("synchronize"),
        "is_bf16_supported": lambda including_emulation=True: including_emulation or major >= 8,
        "mem_get_info": lambda *device: (int(kind.memory - allocated()), int(kind.memory)),
        "memory_allocated": allocated,
        "memory_reserved": allocated,
        "max_memory_allocated": peak,
        "max_memory_reserved": peak,
        "reset_peak_memory_stats": lambda *device: torch.ops.fake_gpu.forget_peak(),
        "get_rng_state": lambda *device: generator.get_state(),
        "set_rng_state": lambda state, *device: generator.set_state(state),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state_all": lambda states: generator.set_state(states[0]),
    }
    for names, value in constants.items():
        for name in names.split():  # Dynamo registers handlers by function, so each needs its own
            functions[name] = lambda *given, value=value: value
    for name, function in functions.items():
        for module in (torch.cuda, torch.cuda.random):
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, function)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    inner = {"getDeviceCount": 1, "getDevice": 0, "setDevice": None, "emptyCache": None}
    for name, value in (inner | {"exchangeDevice": 0, "maybeExchangeDevice": 0}).items():
        setattr(torch._C, f"_cuda_{name}", lambda *given, value=value: value)
