"""The base model in NF4 or 16 bit, its tokenizer, its LoRA adapter, and what they take in memory."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.recipe import Recipe

GB = 1e9
CPU_LIMIT = 1e9  # parameters; above it a CPU would train for weeks
# Projections that some architectures fuse into one module.
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("c_attn", "qkv_proj", "query_key_value", "Wqkv")),
    **dict.fromkeys(("gate_proj", "up_proj"), ("gate_up_proj", "c_fc", "dense_h_to_4h")),
    "o_proj": ("attn.c_proj", "attention.dense"),
    "down_proj": ("mlp.c_proj", "dense_4h_to_h"),
}


def pick_device() -> torch.device:
    """This process' GPU, else the CPU. Several GPUs without a launcher: the first one, and a line that says so."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if "LOCAL_RANK" not in os.environ and torch.cuda.device_count() > 1:
        print(f"{torch.cuda.device_count()} GPUs visible, using one; `accelerate launch fine_tune.py` uses all")
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def why_no_gpu() -> str | None:
    """The reason why torch cannot use a GPU here, or None if it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is a CPU-only build; install one with CUDA (https://pytorch.org/get-started)"
    if shutil.which("nvidia-smi") is None:
        return "no NVIDIA driver was found (no nvidia-smi); install it, or choose a GPU runtime (Colab: Runtime > Change type)"
    return f"torch {torch.__version__} finds no usable GPU although a driver is installed; see what `nvidia-smi` says"


def pick_compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The recipe's, or: float32 on CPU, bfloat16 where the GPU has it natively, else float16.

    A T4 reports bfloat16 as supported because emulation counts; it is asked not to.
    """
    if recipe.compute_dtype != "auto":
        return getattr(torch, recipe.compute_dtype)
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, or the one saved in a run's adapter folder."""
    source = str(folder or recipe.model)
    options = {} if folder else {"revision": recipe.revision}
    with _loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=recipe.trust_remote_code, **options)
    if tokenizer.pad_token_id is None:
        # Only a filler: padding is masked and answers' own stop tokens stay in the loss.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def load_config(recipe: Recipe) -> PretrainedConfig:
    """The base model's architecture; InputError if it cannot be had."""
    with _loading(recipe.model, "model"):
        return AutoConfig.from_pretrained(recipe.model, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code)


def load_base(recipe: Recipe, device: torch.device) -> PreTrainedModel:
    """The base model on `device`, 4-bit NF4 by default, frozen. Only safetensors are read."""
    if recipe.trust_remote_code:
        print(f"WARNING: trust_remote_code is on: code from {recipe.model} runs on this machine")
    dtype = pick_compute_dtype(recipe, device)
    config = load_config(recipe)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",  # Linear4bit's own default is fp4
        bnb_4bit_use_double_quant=recipe.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
    with _loading(recipe.model, "model"):
        model = AutoModelForCausalLM.from_pretrained(
            recipe.model,
            revision=recipe.revision,
            config=config,
            quantization_config=quantization if recipe.quantization == "nf4" else None,
            dtype=dtype,
            device_map={"": device},
            attn_implementation=pick_attention(recipe, config),
            use_safetensors=True,
            trust_remote_code=recipe.trust_remote_code,
        )
    keep_weights_in_place(model)
    model.requires_grad_(False)
    return model


def keep_weights_in_place(model: torch.nn.Module) -> None:
    """Switch off bitsandbytes' repacking for CPUs with AVX512-BF16.

    There one forward in eval mode repacks the 4-bit weights, and every later training gradient is silently wrong.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def pick_attention(recipe: Recipe, config: PretrainedConfig) -> str:
    """The recipe's kernel, or sdpa; eager where attention logits are soft-capped, which sdpa cannot do."""
    if recipe.attention != "auto":
        return recipe.attention
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def add_adapter(model: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """A fresh LoRA adapter in float32 on the recipe's target modules."""
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=resolve_targets(model, recipe.lora_target_modules),
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(module) is Conv1D for module in model.modules()),
    )
    adapted = get_peft_model(model, config)
    adapters_to_fp32(adapted)
    return adapted


def adapters_to_fp32(model: torch.nn.Module) -> None:
    """Trained weights stay float32: a bf16 adapter answers differently once it is reloaded."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def resolve_targets(model: PreTrainedModel, wanted: str | list[str]) -> str | list[str]:
    """LoRA targets that the model really has; q_proj on a model that fuses q, k and v becomes the fused module."""
    if wanted == "all-linear":
        return wanted
    wanted = [wanted] if isinstance(wanted, str) else wanted
    linear = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]

    def present(target: str) -> bool:
        return any(f".{name}".endswith(f".{target}") for name in linear)

    found = []
    for target in wanted:
        candidates = [name for name in (target, *FUSED.get(target, ())) if present(name)]
        if not candidates:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise InputError(
                f"lora_target_modules: got {target!r}; this model's linear modules are {', '.join(known)}. "
                "Name some of them, or all-linear."
            )
        found.append(candidates[0])
    return list(dict.fromkeys(found))


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter of a run on its base, for answering."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(
            f"{folder} holds no adapter_model.safetensors: the run has not finished. Resume it with fine_tune.py --resume."
        )
    return PeftModel.from_pretrained(model, str(folder)).eval()


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device while training."""

    weights: float
    adapter: float  # weights, gradients, optimizer
    activations: float
    parameters: int

    @property
    def total(self) -> float:
        """Everything, and a GB for the CUDA context, kernels' work space and fragments."""
        return self.weights + self.adapter + self.activations + GB

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB (base {self.weights / GB:.1f}, adapter and optimizer {self.adapter / GB:.1f}, "
            f"activations {self.activations / GB:.1f}, overhead 1.0)"
        )


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The architecture without weights (meta device)."""
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(config)


def estimate_memory(recipe: Recipe, model: PreTrainedModel, tokens: int, checkpointing: bool, bytes_each: int) -> MemoryEstimate:
    """Training memory for batches of `tokens` tokens; `model` may be empty, `bytes_each` is the compute dtype's size.

    A layer keeps, per token: the inputs of its seven projections (float32 copies for the adapters and compute dtype),
    the MLP's two products and the attention's output. Checkpointing keeps one hidden state a layer and one whole layer.
    """
    config = model.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    quantized = sum(m.weight.numel() for m in linear)
    total = sum(parameter.numel() for parameter in model.parameters())
    constants = 8 / 64 / 8 + 32 / (64 * 256) / 8 if recipe.double_quantization else 32 / 64 / 8
    weights = total * bytes_each
    if recipe.quantization == "nf4":
        largest = max(m.weight.numel() for m in linear)  # one layer at a time is dequantised
        weights = quantized * (0.5 + constants) + (total - quantized) * bytes_each + largest * bytes_each
    adapter = 16 * _adapter_parameters(recipe, model, linear)
    per_layer = tokens * ((6 * hidden + inner) * 4 + (6 * hidden + 4 * inner) * bytes_each)
    kept = layers * tokens * hidden * bytes_each + per_layer if checkpointing else layers * per_layer
    logits = tokens * config.vocab_size * (bytes_each + 4) / 8  # answers are at most an eighth of the tokens
    return MemoryEstimate(weights, adapter, kept + logits, total)


def _adapter_parameters(recipe: Recipe, model: PreTrainedModel, linear: list[torch.nn.Module]) -> int:
    targets = resolve_targets(model, recipe.lora_target_modules)
    if targets != "all-linear":
        named = dict(model.named_modules())
        linear = [m for name, m in named.items() if m in linear and any(f".{name}".endswith(f".{t}") for t in targets)]
    return sum(recipe.lora_r * sum(m.weight.shape) for m in linear)


@dataclass(frozen=True)
class Plan:
    """How a run will use its device."""

    device: torch.device
    compute_dtype: torch.dtype
    tokens_per_batch: int
    gradient_checkpointing: bool
    estimate: MemoryEstimate
    free: float | None  # bytes; None on CPU


def make_plan(recipe: Recipe, config: PretrainedConfig, device: torch.device) -> Plan:
    """Choose batch size and checkpointing from the estimate; refuse what cannot fit, with a way out."""
    dtype, model = pick_compute_dtype(recipe, device), empty_model(config)
    if device.type == "cpu":
        tokens = 4096 if recipe.tokens_per_batch == "auto" else recipe.tokens_per_batch
        estimate = estimate_memory(recipe, model, tokens, recipe.gradient_checkpointing is True, dtype.itemsize)
        if estimate.parameters > CPU_LIMIT:
            raise InputError(
                f"{recipe.model} has {estimate.parameters / GB:.1f} B parameters and needs a GPU: {why_no_gpu()}. "
                "`python fine_tune.py --recipe demo` runs on any machine."
            )
        return Plan(device, dtype, tokens, recipe.gradient_checkpointing is True, estimate, None)
    free = torch.cuda.mem_get_info(device)[0]
    return fit_plan(recipe, model, device, dtype, free)


def fit_plan(recipe: Recipe, model: PreTrainedModel, device: torch.device, dtype: torch.dtype, free: float) -> Plan:
    """The largest batch, without checkpointing if possible, that the estimate fits into `free` bytes."""
    sizes = (16384, 8192, 4096, 2048) if recipe.tokens_per_batch == "auto" else (recipe.tokens_per_batch,)
    sizes = tuple(size for size in sizes if size >= recipe.max_length) or (recipe.max_length,)
    checkpointing = (False, True) if recipe.gradient_checkpointing == "auto" else (recipe.gradient_checkpointing,)
    choices = [(tokens, on) for on in checkpointing for tokens in sizes]
    for tokens, on in choices:
        estimate = estimate_memory(recipe, model, tokens, on, dtype.itemsize)
        if estimate.total <= free:
            return Plan(device, dtype, tokens, on, estimate, free)
    raise InputError(
        f"{recipe.model} needs about {estimate}; {free / GB:.1f} GB are free. Way out: "
        + _way_out(recipe)
        + ", a smaller base (see the README's table), or a larger GPU."
    )


def _way_out(recipe: Recipe) -> str:
    steps = []
    if recipe.quantization == "none":
        steps.append("--quantization nf4")
    if recipe.gradient_checkpointing is False:
        steps.append("--gradient_checkpointing true")
    steps.append(f"--max_length {max(512, recipe.max_length // 2)}")
    return ", ".join(steps)


class _loading:
    """Turns what the hub and transformers raise while loading into one sentence that says what to do."""

    def __init__(self, source: str, what: str):
        self.source, self.what = source, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if not isinstance(error, (OSError, ValueError)) or isinstance(error, InputError):
            return False
        raise InputError(f"the {self.what} {self.source!r} cannot be loaded: {self._advice(str(error))}") from error

    def _advice(self, message: str) -> str:
        folder = Path(self.source)
        if folder.is_dir():
            if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
                return (
                    "it has only .bin weights, which are pickles and can run code. Convert them once, where you trust them: "
                    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
                )
            return f"{message.splitlines()[0]} The folder needs config.json, tokenizer files and .safetensors weights."
        if "safetensors" in message and ("bin" in message or "pytorch_model" in message):
            return "its repository has no safetensors weights, only pickles, which can run code; choose a converted copy."
        if "trust_remote_code" in message:
            return "it needs code from its repository; read that code, then pass --trust_remote_code true."
        if "gated" in message or "401" in message or "403" in message:
            return "it is gated: accept its terms on huggingface.co and set HF_TOKEN."
        return (
            f"{message.splitlines()[0]} Expected a folder or a hub id like owner/name. Without network "
            "(or with HF_HUB_OFFLINE=1) only folders and models already downloaded work."
        )
