"""What a model takes in memory, and how a run uses its device: batch size, checkpointing, or a refusal with a way out."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.model import pick_attention, pick_compute_dtype, resolve_targets, why_no_gpu
from dandap.recipe import Recipe

GB = 1e9
CPU_LIMIT = 1e9  # parameters; above it a CPU would train for weeks
CPU_TOKENS = 4096  # per batch
GPU_TOKENS = (16384, 8192, 4096, 2048, 1024, 512)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: float
    adapter: float  # in training with gradients and optimizer
    activations: float  # in inference the KV cache and one layer
    parameters: int

    @property
    def total(self) -> float:
        """Everything, and a GB for the CUDA context, kernels' work space and fragments."""
        return self.weights + self.adapter + self.activations + GB

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB (base {self.weights / GB:.1f}, adapter {self.adapter / GB:.1f}, "
            f"activations {self.activations / GB:.1f}, overhead 1.0)"
        )


def empty_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The architecture without weights (meta device)."""
    with torch.device("meta"):  # tied embeddings stay one tensor, which accelerate's init_empty_weights unties
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def estimate_training(
    recipe: Recipe, model: PreTrainedModel, tokens: int, checkpointing: bool, bytes_each: int
) -> MemoryEstimate:
    """Training on batches of `tokens` tokens; `model` may be empty, `bytes_each` is the compute dtype's size.

    A layer keeps, per token: the inputs of its seven projections (float32 copies for the adapters and compute dtype),
    the MLP's two products and the attention's output; eager attention keeps its scores too. Checkpointing keeps one
    hidden state a layer and one whole layer. An estimate: not yet compared with a GPU's measured peak.
    """
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    per_layer = tokens * ((6 * hidden + inner) * 4 + (6 * hidden + 4 * inner) * bytes_each) + _scores(
        recipe, config, tokens, bytes_each
    )
    kept = layers * tokens * hidden * bytes_each + per_layer if checkpointing else layers * per_layer
    logits = tokens * config.vocab_size * (bytes_each + 4) / 8  # answers are at most an eighth of the tokens
    weights, total = _weights(recipe, model, bytes_each)
    return MemoryEstimate(weights, 16 * _adapter_parameters(recipe, model), kept + logits, total)


def estimate_inference(recipe: Recipe, model: PreTrainedModel, tokens: int, bytes_each: int) -> MemoryEstimate:
    """Answering batches of `tokens` tokens: base, adapter, KV cache and one layer's work."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * tokens * heads * head_size * bytes_each
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    layer = tokens * (6 * config.hidden_size + 4 * inner) * bytes_each + _scores(recipe, config, tokens, bytes_each)
    weights, total = _weights(recipe, model, bytes_each)
    return MemoryEstimate(weights, 4 * _adapter_parameters(recipe, model), cache + layer, total)


def _weights(recipe: Recipe, model: PreTrainedModel, bytes_each: int) -> tuple[float, int]:
    """(bytes of the base, its parameters). NF4: half a byte, a constant per 64 weights, one dequantised matrix at a time."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if recipe.quantization == "none":
        return total * bytes_each, total
    sizes = [module.weight.numel() for _, module in _linear(model)]
    constants = 8 / 64 / 8 + 32 / (64 * 256) / 8 if recipe.double_quantization else 32 / 64 / 8
    return sum(sizes) * (0.5 + constants) + (total - sum(sizes)) * bytes_each + max(sizes) * bytes_each, total


def _linear(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """The modules that are quantised and can get an adapter: all linear ones but the LM head."""
    head = model.get_output_embeddings()
    return [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]


def _adapter_parameters(recipe: Recipe, model: PreTrainedModel) -> int:
    targets = resolve_targets(model, recipe.lora_target_modules)
    chosen = [m for n, m in _linear(model) if targets == "all-linear" or any(f".{n}".endswith(f".{t}") for t in targets)]
    return sum(recipe.lora_r * sum(module.weight.shape) for module in chosen)


def _scores(recipe: Recipe, config: PretrainedConfig, tokens: int, bytes_each: int) -> float:
    """A layer's attention scores, which only eager attention holds: rows of max_length tokens, softmax in float32."""
    if pick_attention(recipe, config) != "eager":
        return 0.0
    return tokens * recipe.max_length * config.num_attention_heads * (bytes_each + 4)


@dataclass(frozen=True)
class Plan:
    """How a run will use its device."""

    device: torch.device
    compute_dtype: torch.dtype
    tokens_per_batch: int
    gradient_checkpointing: bool
    estimate: MemoryEstimate
    free: float | None  # bytes; None on CPU

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {self.free / GB:.1f} GB free"
        compute = str(self.compute_dtype).removeprefix("torch.")
        return (
            f"device {self.device}, compute {compute}, estimated memory {self.estimate}{free}; "
            f"{self.tokens_per_batch} tokens per batch"
        )


def make_plan(recipe: Recipe, config: PretrainedConfig, device: torch.device, training: bool) -> Plan:
    """Choose batch size and checkpointing from the estimate; refuse what cannot fit, with a way out."""
    dtype, model = pick_compute_dtype(recipe, device), empty_model(config, recipe.trust_remote_code)
    if device.type == "cuda":
        return fit_plan(recipe, model, device, dtype, torch.cuda.mem_get_info(device)[0], training)
    tokens = CPU_TOKENS if recipe.tokens_per_batch == "auto" else recipe.tokens_per_batch
    checkpointing = recipe.gradient_checkpointing is True
    estimate = _estimate(recipe, model, tokens, checkpointing, dtype, training)
    if estimate.parameters > CPU_LIMIT:
        raise InputError(
            f"{recipe.model} has {estimate.parameters / GB:.1f} B parameters and needs a GPU: {why_no_gpu()}. "
            "`python fine_tune.py --recipe demo` runs on any machine."
        )
    return Plan(device, dtype, tokens, checkpointing, estimate, None)


def fit_plan(
    recipe: Recipe, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, free: float, training: bool
) -> Plan:
    """The largest batch, without checkpointing if possible, that the estimate fits into `free` bytes."""
    sizes = (recipe.tokens_per_batch,)
    if recipe.tokens_per_batch == "auto":  # a batch holds at least one whole example
        sizes = (*(size for size in GPU_TOKENS if size > recipe.max_length), recipe.max_length)
    checkpointing = (False, True) if recipe.gradient_checkpointing == "auto" else (recipe.gradient_checkpointing,)
    for on in checkpointing if training else (False,):
        for tokens in sizes:
            estimate = _estimate(recipe, model, tokens, on, dtype, training)
            if estimate.total <= free:
                return Plan(device, dtype, tokens, on, estimate, free)
    way_out = _way_out(recipe, estimate, free, training)
    raise InputError(f"{recipe.model} needs about {estimate}; {free / GB:.1f} GB are free. Way out: {way_out}.")


def _estimate(recipe, model, tokens: int, checkpointing: bool, dtype: torch.dtype, training: bool) -> MemoryEstimate:
    if training:
        return estimate_training(recipe, model, tokens, checkpointing, dtype.itemsize)
    return estimate_inference(recipe, model, tokens, dtype.itemsize)


def _way_out(recipe: Recipe, estimate: MemoryEstimate, free: float, training: bool) -> str:
    """What would lower the estimate, the strongest first."""
    steps = ["free the GPU (nvidia-smi shows who uses it)"]
    if training and recipe.quantization == "none":
        steps.append("--quantization nf4")
    if training and recipe.gradient_checkpointing is False:
        steps.append("--gradient_checkpointing true")
    if training and estimate.total - estimate.activations < free:
        if recipe.tokens_per_batch != "auto":
            steps.append("--tokens_per_batch auto")
        steps.append(f"--max_length {recipe.max_length // 2}")
    return ", ".join([*steps, "a smaller base (see the README's table)", "or a larger GPU"])
