"""A base dealt out among the GPUs of several processes (FSDP2), for one larger than a card.

Each process keeps its part of every layer. A layer is put together while it works, on all at the
same time: every process must do as many forwards and backwards as the others, or all wait for ever.

The adapter, a hundredth of the base, stays whole in every process. So checkpoints, the saved
adapter and the optimizer are those of one process, and a run goes on with or without sharding.
"""

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from dandap.base.processes import process_count


def shard(model: PreTrainedModel | PeftModel, device: torch.device) -> None:
    """Deal the weights out and move them to `device`, a layer at a time; the adapter stays whole.

    A line tells how much of the base this process keeps.

    The model was loaded on the CPU, because the card has no room for it. Its 4-bit weights are
    stored in the float type of the others: those in bytes, which is the default, FSDP leaves whole.
    """
    mesh = init_device_mesh(device.type, (process_count(),))
    adapter = {weights for name, weights in model.named_parameters() if ".lora_" in name}
    for weights in adapter:
        weights.data = weights.data.to(device)
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=adapter)
    # What is left (embeddings, LM head) belongs to the whole. It is taken apart after each forward,
    # as layers are: torch would leave it together until the next one, and where one process saves
    # in between, which takes it apart there, the others' next gathers are not that one's.
    fully_shard(model, mesh=mesh, ignored_params=adapter, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # The constants of its blocks, an eighth of a bit a weight, are no parameters.
            module.quant_state.to(device)
    model.hf_device_map = {"": device}  # it said "cpu", which accelerate compares with the device
    base = [weights for weights in model.parameters() if weights not in adapter]
    whole = sum(weights.numel() * weights.itemsize for weights in base)
    kept = sum(weights.to_local().numel() * weights.itemsize for weights in base)
    print(
        f"the base is sharded: this process of {process_count()} keeps {kept / 1e6:,.1f} of "
        f"{whole / 1e6:,.1f} MB"
    )


def _layers(model: PreTrainedModel | PeftModel) -> torch.nn.ModuleList:
    """Return the model's decoder layers: of its lists of modules the one with most parameters."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=_size)


def _size(module: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


def sum_gradients(model: PeftModel) -> None:
    """Put the mean over processes in the place of the adapter's gradients, in one exchange."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    gradients = [
        torch.zeros_like(weights) if weights.grad is None else weights.grad for weights in trained
    ]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= process_count()
    for weights, mean in zip(trained, flat.split([g.numel() for g in gradients]), strict=True):
        weights.grad = mean.view_as(weights)
