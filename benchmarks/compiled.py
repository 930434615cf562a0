"""Count the kernels and memory traffic of a decoder layer with and without torch.compile, on a CPU.

python -m benchmarks.compiled EEVE-10.8B Gemma-2-9B

The layer has random bfloat16 weights and an adapter, and runs TOKENS tokens forward and backward.
Without compiling, every operator is assumed to read its inputs and write its outputs. With it,
Inductor counts (for a CPU; GPU kernels use the same scheduler). Matrix products and attention are
excluded. The last line is JSON.
"""

import sys
from pathlib import Path

# For `python benchmarks/NAME.py`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dandap.cli  # noqa: F401

# isort: split
import json
from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch._inductor import compile_fx, metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from benchmarks.material import named_config
from dandap.cli import Parser, parse, run_script
from dandap.model.adapter import add_adapter
from dandap.model.load import decoder_layers
from dandap.recipe import Recipe

TOKENS = 256
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}
# Operators without a kernel.
FREE = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FREE |= {"_unsafe_view", "lift_fresh"}


class Operators(TorchDispatchMode):
    """Counts operators and their memory traffic, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and name not in FREE:
            others = "attention" if "attention" in name else "element-wise"
            kind = "products" if name in PRODUCTS else others
            tensors = [
                t for t in tree_leaves((args, kwargs, output)) if isinstance(t, torch.Tensor)
            ]
            self.kernels[kind] += 1
            self.bytes[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output


def measure(name: str) -> dict[str, Any]:
    """Return the element-wise kernels and kilobytes per token of a layer, before and after."""
    config = named_config(name)
    config.num_hidden_layers, config.vocab_size = 1, 64
    base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    model: Any = add_adapter(base, Recipe(model=name, quantization="none")).get_base_model()
    layer = decoder_layers(model)[0]
    positions = torch.arange(TOKENS)[None]
    hidden = torch.randn(1, TOKENS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    options = {
        "attention_mask": torch.zeros(1, 1, TOKENS, TOKENS, dtype=torch.bfloat16),
        "position_ids": positions,
        "position_embeddings": model.base_model.rotary_emb(hidden, positions),
    }

    def step(forward: Any) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = forward(hidden, **options)
        output.backward(torch.ones_like(output))

    with Operators() as before:
        step(layer)
    torch.compiler.reset()
    metrics.reset()
    with (  # a cached graph is not counted
        torch._inductor.config.patch(force_disable_caches=True),
        mock.patch.object(compile_fx, "inductor_metrics_log"),  # enables num_bytes_accessed
    ):
        step(torch.compile(layer, fullgraph=True))
    others = sum(before.bytes[kind] for kind in ("products", "attention"))
    return {
        "kernels_before": before.kernels["element-wise"],
        "kernels_after": metrics.generated_kernel_count,
        "kb_per_token_before": round(before.bytes["element-wise"] / TOKENS / 1e3),
        "kb_per_token_after": round((metrics.num_bytes_accessed - others) / TOKENS / 1e3),
        "products_and_attention": before.kernels["products"] + before.kernels["attention"],
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Parse the arguments, measure each shape, and print the result as JSON on the last line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="shapes in dandap/model/shapes.yaml"
    )
    result = {name: measure(name) for name in parse(parser, argv).names}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    run_script(main)
