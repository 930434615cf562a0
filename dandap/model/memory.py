"""What a model takes in memory, and how a run uses its device.

A plan has a batch size and checkpointing; what does not fit is refused with a way out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.model.adapter import resolve_targets
from dandap.model.device import cpu_computes_bfloat16, pick_compute_dtype, why_no_gpu
from dandap.model.distributed import from_first, process_count
from dandap.model.load import pick_attention
from dandap.recipe import Recipe
from dandap.tree.attention import head_size, why_no_flex
from dandap.tree.logits import CHUNK

GB = 1e9
CPU_LIMIT = 1e9  # parameters; above it a CPU would train for weeks
SMALL = 1e8  # parameters; up to here products are not what takes a CPU's time (the demo: 3e6)
CPU_TOKENS, CPU_ANSWERING_TOKENS = 4096, 16384  # per batch
COPY_SHARE = 0.5  # of the memory that is free, the most that a dequantised base may take
# Of a batch's tokens, those that predict an answer: twice what 5 questions on 500 tokens come to.
ANSWER_SHARE = 1 / 16
GPU_TOKENS = (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512)
MOST_TRAINING_TOKENS = 16384
# Of a batch, beside the longest article: 16 questions on it. An article that fills a batch alone is
# read again for each of its questions.
ROOM = 1024
QUESTION_TOKENS = 100  # of a prompt that is not shared, with a share of the article
# Tokens of prompts that are forwarded at once; a batch of answers may hold the keys and values of
# many more.
READ_TOKENS = 8192
# Of max_new_tokens, what a question gets room for in a batch: short answers stop long before it,
# and what grows too large is halved. On CUDA a step is captured anew where room must be made, which
# takes the time of one or two: with room for 4 of 16 steps an H200 was 1.1 to 1.2 times as fast as
# without, though 3 to 3.8 times in the steps that replay. So 16 at least.
EXPECTED_SHARE, SHORT_ANSWER = 1 / 4, 16


@dataclass(frozen=True)
class MemoryEstimate:
    """Holds what a model takes on one device, in bytes."""

    weights: float
    adapter: float  # in training with gradients and optimizer
    activations: float  # in inference the KV cache and one layer
    parameters: int

    @property
    def total(self) -> float:
        """Return the sum, and a GB for the CUDA context, kernels' work space and fragments."""
        return self.weights + self.adapter + self.activations + GB

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB (base {self.weights / GB:.1f}, adapter "
            f"{self.adapter / GB:.1f}, activations {self.activations / GB:.1f}, overhead 1.0)"
        )


@dataclass(frozen=True)
class Machine:
    """Holds what a plan is made for."""

    device: torch.device
    dtype: torch.dtype  # of the arithmetic
    free: float | None  # bytes; None on CPU, where a plan is not refused for memory
    flex: bool = False  # FlexAttention in training; otherwise the kernel the model is loaded with
    answer_share: float = ANSWER_SHARE  # of the tokens forwarded in training
    is_here: bool = True  # False for a GPU that --plan only imagines


def empty_model(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the architecture without weights, on the meta device."""
    # Tied embeddings stay one tensor here, which accelerate's init_empty_weights unties: they
    # would be counted twice.
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def estimate_training(
    recipe: Recipe,
    model: PreTrainedModel,
    tokens: int,
    checkpointing: bool,
    machine: Machine,
) -> MemoryEstimate:
    """Estimate training on batches of `tokens` tokens.

    `model` may be empty. Checkpointing keeps one hidden state a layer and one whole layer. What
    autograd keeps is held against a count of it (tests/test_memory.py), the peak against a traced
    step of true shape (tests/rehearsal); one peak on an H200 was 0.5% below it.
    """
    bytes_each, flex = machine.dtype.itemsize, machine.flex
    config = model.config.get_text_config()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    one_layer = tokens * _layer_bytes(recipe, model, bytes_each, flex)
    kept = layers * (tokens * hidden * bytes_each if checkpointing else one_layer)
    ends = tokens * hidden * (4 + bytes_each)  # embeddings and the last norm
    # Dense masks are (rows, length, length), one a kind of layer; a block mask is next to nothing.
    kinds = 2 if _has_sliding_layers(config) else 1
    masks = 0 if flex else tokens * recipe.max_length * bytes_each * kinds
    # What is held for a moment: first the logits, then a layer's backward, and where its
    # activations were not kept, the whole layer.
    backward = tokens * (_inner_size(config) + 2 * hidden) * bytes_each
    moment = max(_logits_bytes(config, tokens * machine.answer_share, bytes_each), backward)
    if checkpointing:
        moment = max(moment, one_layer + backward)
    weights, total = _weights(recipe, model, bytes_each)
    # Of an adapter's parameter: float32 weight, gradient, AdamW's two moments; autocast's copy,
    # which lasts as long as the activations.
    each = 16 + (bytes_each if bytes_each < 4 and not checkpointing else 0)
    return MemoryEstimate(
        weights,
        each * _adapter_parameters(recipe, model),
        kept + ends + masks + moment,
        total,
    )


def _logits_bytes(config: PretrainedConfig, positions: float, bytes_each: int) -> float:
    """Return what the logits of so many positions take in training, in bytes.

    They and their gradient are held whole, and a soft cap's own steps; the loss takes them as
    float32 in chunks, of which two are held.
    """
    capped = 3 if getattr(config, "final_logit_softcapping", None) else 0
    logits = positions * config.vocab_size
    return logits * (2 + capped) * bytes_each + 2 * 4 * min(CHUNK, logits)


def _layer_bytes(recipe: Recipe, model: PreTrainedModel, bytes_each: int, flex: bool) -> float:
    """Return what autograd keeps of one token in one decoder layer, in bytes.

    Norms keep a float32 copy of their input; the MLP keeps both halves, the activation and their
    product; attention keeps query, key, value (repeated to all heads where a mask is given) and
    output, eager also its scores; an adapter keeps its input, and a copy of its own under dropout
    or on a 16-bit base (PEFT casts it to float32 there, autocast back again).
    """
    config = model.config.get_text_config()
    hidden, inner, heads = config.hidden_size, _inner_size(config), config.num_attention_heads
    queries, keys = heads * head_size(config), _kv_heads(config) * head_size(config)
    layer_linear = [(n, m) for n, m in _adapted(recipe, model) if ".0." in n]  # the first layer's
    own_copies = recipe.lora_dropout > 0 or (bytes_each < 4 and recipe.quantization == "none")
    # Modules that read the same tensor share it: q, k and v; gate and up. With copies of their own
    # every module counts. What o_proj reads is attention's output, which is kept anyway.
    adapter_inputs = sum(_in_features(module) for _, module in layer_linear)
    if not own_copies:
        read = {(n.rsplit(".", 1)[0], _in_features(module)) for n, module in layer_linear}
        adapter_inputs = sum(size for _, size in read if size != queries or queries == hidden)
    dropout_masks = (
        sum(_in_features(module) for _, module in layer_linear) if recipe.lora_dropout else 0
    )
    # A single key head is every query head's as it is; several are copied where a mask is given.
    repeated = keys if flex or _kv_heads(config) == 1 else queries
    attention = 2 * queries + 2 * repeated
    if pick_attention(recipe, config) == "eager" and not flex:
        capped = bytes_each if getattr(config, "attn_logit_softcapping", None) else 0
        cast = bytes_each if bytes_each < 4 else 0
        scores = recipe.max_length * heads * (4 + cast + capped)
    else:
        scores = 4 * heads  # a float32 log-sum of exponentials a head, for the backward
    narrow = 3 * inner + attention + adapter_inputs + recipe.lora_r * len(layer_linear)
    return 4 * _normed(model, queries, keys) + narrow * bytes_each + dropout_masks + scores


def _normed(model: PreTrainedModel, queries: int, keys: int) -> int:
    """Return how many elements of a token pass through the first layer's norms."""
    one_head = head_size(model.config.get_text_config())
    elements = 0
    for name, module in model.named_modules():
        is_norm = ".0." in name and "norm" in type(module).__name__.lower()
        if not is_norm or getattr(module, "weight", None) is None:
            continue
        size = module.weight.numel()
        if size == one_head:
            # Qwen3's q_norm and k_norm have one head's weights, and norm every head with them.
            size = {"q": queries, "k": keys}.get(name.rsplit(".", 1)[-1][0], size)
        elements += size
    return elements


def _inner_size(config: PretrainedConfig) -> int:
    return getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def _kv_heads(config: PretrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _has_sliding_layers(config: PretrainedConfig) -> bool:
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


def estimate_inference(
    recipe: Recipe, model: PreTrainedModel, tokens: int, bytes_each: int
) -> MemoryEstimate:
    """Estimate answering batches of `tokens` tokens.

    It counts base, adapter, KV cache, and one layer's work on the prompts read at once.
    """
    config = model.config.get_text_config()
    cache = (
        2 * config.num_hidden_layers * tokens * _kv_heads(config) * head_size(config) * bytes_each
    )
    read = min(tokens, READ_TOKENS)
    # The MLP: its activation, one of its halves, and in two steps what an adapter adds to it. Or
    # attention, which comes before: query, key and value for all heads, and the output.
    queries = config.num_attention_heads * head_size(config)
    mlp, attention = 4 * _inner_size(config) * bytes_each, 4 * queries * bytes_each
    if pick_attention(recipe, config) == "eager":
        attention += recipe.max_length * config.num_attention_heads * (bytes_each + 4)
    layer = read * (3 * config.hidden_size * bytes_each + max(mlp, attention))
    masks = 2 if _has_sliding_layers(config) else 1
    layer += read * recipe.max_length * bytes_each * masks
    samples, new = recipe.samples, recipe.samples * expected_length(recipe.max_new_tokens)
    branches = tokens * samples / (QUESTION_TOKENS + new)
    layer += branches * config.vocab_size * 4 * 3  # logits, without what may not come, with noise
    weights, total = _weights(recipe, model, bytes_each)
    # Cast to the base's precision, as inference.py has it; validation while training finds its room
    # by halving batches.
    adapter = bytes_each * _adapter_parameters(recipe, model)
    return MemoryEstimate(weights, adapter, cache + layer, total)


def expected_length(max_new_tokens: int) -> int:
    """Return how many tokens of an answer a batch has room for at first."""
    return min(max_new_tokens, max(SHORT_ANSWER, math.ceil(max_new_tokens * EXPECTED_SHARE)))


def _weights(recipe: Recipe, model: PreTrainedModel, bytes_each: int) -> tuple[float, int]:
    """Return the bytes of the base and the number of its parameters.

    NF4 takes half a byte a weight, a constant per 64 weights, and one dequantised matrix at a time.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    sizes = [module.weight.numel() for _, module in _linear(model)]
    each, room = bytes_each, 0
    if recipe.quantization == "nf4":
        # Bytes a weight of the constants: float32, or quantised once more to 8 bits, with a float32
        # per 256 of them.
        constants = 8 / 64 / 8 + 32 / (64 * 256) / 8 if recipe.double_quantization else 32 / 64 / 8
        each, room = 0.5 + constants, max(sizes) * bytes_each
    linear, others = sum(sizes) * each, (total - sum(sizes)) * bytes_each
    return linear + others + room, total


def _linear(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """Return the modules that are quantised and can get an adapter: all linear but the LM head."""
    head = model.get_output_embeddings()
    return [
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head
    ]


def _adapted(recipe: Recipe, model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    """Return the modules that get an adapter; the LM head is one only when it is named."""
    targets = resolve_targets(model, recipe.lora_target_modules)
    if targets == "all-linear":
        return _linear(model)
    every = [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    return [(n, m) for n, m in every if any(f".{n}".endswith(f".{target}") for target in targets)]


def _adapter_parameters(recipe: Recipe, model: PreTrainedModel) -> int:
    return sum(recipe.lora_r * sum(module.weight.shape) for _, module in _adapted(recipe, model))


def _in_features(module: torch.nn.Module) -> int:
    return module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features


@dataclass(frozen=True)
class Plan:
    """Holds how a run will use its device."""

    device: torch.device
    compute_dtype: torch.dtype
    tokens_per_batch: int
    gradient_checkpointing: bool
    estimate: MemoryEstimate
    free: float | None  # bytes; None on CPU
    flex: bool = False  # FlexAttention in training; otherwise the kernel the model was loaded with
    dequantised: bool = False  # whether NF4 weights are kept as the numbers they stand for
    merged: bool = False  # whether the adapter is added to them, for answering on a GPU

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {self.free / GB:.1f} GB free"
        compute = str(self.compute_dtype).removeprefix("torch.")
        return (
            f"device {self.device}, compute {compute}, estimated memory {self.estimate}{free}; "
            f"{self.tokens_per_batch} tokens per batch"
            f"{', NF4 weights dequantised once' if self.dequantised else ''}"
            f"{', adapter merged' if self.merged else ''}"
        )


def make_plan(
    recipe: Recipe, config: PretrainedConfig, device: torch.device, training: bool
) -> Plan:
    """Choose attention, batch size and checkpointing for this machine.

    What cannot fit is refused with a way out.
    """
    dtype, model = pick_compute_dtype(recipe, device), empty_model(config, recipe.trust_remote_code)
    flex = False
    if training:
        reason = why_no_flex(recipe, config, device, dtype)
        flex = reason is None
        print(
            "attention: flex" if flex else f"attention: {pick_attention(recipe, config)} ({reason})"
        )
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    machine = Machine(device, dtype, free, flex)
    if device.type == "cuda":
        return fit_plan(recipe, model, machine, training)
    plan = cpu_plan(recipe, model, machine, training)
    chosen = recipe.compute_dtype != "auto"
    if training and not chosen and plan.estimate.parameters > SMALL and cpu_computes_bfloat16():
        print("this CPU computes bfloat16: --compute_dtype bfloat16 trains in half the time")
    return plan


def same_plan(plan: Plan) -> Plan:
    """Return the first process's plan for this process's device.

    Answers are those of one process to the bit only in that one's batches, its adapter merged or
    not as there; the free memory of GPUs differs.
    """
    return replace(
        from_first(partial(replace, plan, device=torch.device("cpu"))), device=plan.device
    )


def for_these_answers(
    plan: Plan, recipe: Recipe, config: PretrainedConfig, answer_share: float
) -> Plan:
    """Return the training plan once it is known what share of the tokens predicts an answer.

    Answers of 150 tokens on short questions are three quarters of them, not a sixteenth.
    """
    if plan.device.type != "cuda":
        return plan
    machine = Machine(plan.device, plan.compute_dtype, plan.free, plan.flex, answer_share)
    return fit_plan(recipe, empty_model(config, recipe.trust_remote_code), machine, training=True)


def cpu_plan(recipe: Recipe, model: PreTrainedModel, machine: Machine, training: bool) -> Plan:
    """Return the plan for a CPU, or refuse a base that it would train for weeks.

    What main memory does not hold is told, not refused: the estimate is of full batches, and a CPU
    reads each article by itself.
    """
    refuse_without_gpu(recipe, model)
    free = available_memory()
    for tokens, checkpointing in _cpu_choices(recipe, training):
        estimate = _estimate(recipe, model, machine, tokens, checkpointing, training)
        if estimate.total <= free:
            break
    else:
        print(
            f"WARNING: {recipe.model} may need {estimate}; {free / GB:.1f} GB of main memory are "
            "free. Close other programs, or lower --max_length."
        )
    plan = Plan(machine.device, machine.dtype, tokens, checkpointing, estimate, None)
    weights = estimate.parameters * machine.dtype.itemsize
    copied = replace(estimate, weights=weights)
    fits = weights <= COPY_SHARE * free and copied.total <= free
    if recipe.quantization == "nf4" and fits:
        return replace(plan, estimate=copied, dequantised=True)
    return plan


def _cpu_choices(recipe: Recipe, training: bool) -> Iterator[tuple[int, bool]]:
    """Yield batch sizes and whether to checkpoint, the fastest first."""
    sizes = [recipe.tokens_per_batch]
    if recipe.tokens_per_batch == "auto":
        most = CPU_TOKENS if training else CPU_ANSWERING_TOKENS
        sizes = [max(most, recipe.max_length + ROOM)]
        while sizes[-1] // 2 > recipe.max_length:
            sizes.append(sizes[-1] // 2)
        sizes.append(recipe.max_length)
    ways = (recipe.gradient_checkpointing is True,)
    if training and recipe.gradient_checkpointing == "auto":
        ways = (False, True)
    for checkpointing in ways:
        yield from ((tokens, checkpointing) for tokens in sizes)


def refuse_without_gpu(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse a base that a CPU would train for weeks; `model` may be empty."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > CPU_LIMIT:
        raise InputError(
            f"{recipe.model} has {parameters / GB:.1f} B parameters and needs a GPU: "
            f"{why_no_gpu()}. `python fine_tune.py --recipe demo` runs on any machine."
        )


def available_memory() -> float:
    """Return the bytes of main memory that can be used without swapping."""
    return psutil.virtual_memory().available


def fit_plan(recipe: Recipe, model: PreTrainedModel, machine: Machine, training: bool) -> Plan:
    """Return the plan with the largest batch whose estimate fits into the memory that is free.

    It goes without checkpointing if any batch fits so, because checkpointing computes every layer
    twice.
    """
    sizes = (recipe.tokens_per_batch,)
    if recipe.tokens_per_batch == "auto":
        # A batch holds at least one whole example, in training at most a step.
        most = (
            min(recipe.questions_per_step * recipe.max_length, MOST_TRAINING_TOKENS)
            if training
            else max(GPU_TOKENS)
        )
        every = sorted({*GPU_TOKENS, recipe.max_length + ROOM}, reverse=True)
        sizes = (
            *(size for size in every if recipe.max_length < size <= most),
            recipe.max_length,
        )
    checkpointing = (
        (False, True)
        if recipe.gradient_checkpointing == "auto"
        else (recipe.gradient_checkpointing,)
    )
    for on in checkpointing if training else (False,):
        for tokens in sizes:
            estimate = _estimate(recipe, model, machine, tokens, on, training)
            if estimate.total <= machine.free:
                plan = Plan(
                    machine.device, machine.dtype, tokens, on, estimate, machine.free, machine.flex
                )
                return plan if training else merged_if_it_fits(recipe, plan)
    way_out = _way_out(recipe, estimate, machine, training)
    error = DoesNotFit(
        f"{recipe.model} needs about {estimate}; {machine.free / GB:.1f} GB are free. Way out: "
        f"{way_out}."
    )
    error.estimate = estimate
    raise error


class DoesNotFit(InputError):
    """Says that a base needs more memory than is free; `estimate` is what it needs at least."""

    estimate: MemoryEstimate


def merged_if_it_fits(recipe: Recipe, plan: Plan) -> Plan:
    """Return the plan of answering with the adapter merged, where 16-bit weights fit as well."""
    weights = plan.estimate.parameters * plan.compute_dtype.itemsize
    merged = replace(plan.estimate, weights=weights)
    if merged.total > plan.free:
        return plan
    is_nf4 = recipe.quantization == "nf4"
    return replace(plan, estimate=merged, dequantised=is_nf4, merged=True)


def _estimate(
    recipe: Recipe,
    model: PreTrainedModel,
    machine: Machine,
    tokens: int,
    checkpointing: bool,
    training: bool,
) -> MemoryEstimate:
    if training:
        return estimate_training(recipe, model, tokens, checkpointing, machine)
    return estimate_inference(recipe, model, tokens, machine.dtype.itemsize)


def plan_for_size(recipe: Recipe, model: PreTrainedModel, gpu_memory: float) -> Plan:
    """Return the plan for a GPU that is not here, with `gpu_memory` bytes; `model` may be empty.

    All of its memory is taken to be free, and bfloat16 to be native; FlexAttention is counted on
    above 16 GB, because no T4 has more.
    """
    dtype = (
        torch.bfloat16 if recipe.compute_dtype == "auto" else getattr(torch, recipe.compute_dtype)
    )
    flex = recipe.read_once and recipe.attention in ("auto", "flex") and gpu_memory > 16 * GB
    machine = Machine(torch.device("cuda"), dtype, gpu_memory, flex, is_here=False)
    return fit_plan(recipe, model, machine, training=True)


def parse_size(text: str) -> float:
    """Return the bytes of "16GB" or "16"."""
    number = text.upper().removesuffix("GB").strip()
    try:
        size = float(number) * GB
    except ValueError:
        size = 0
    if not 0 < size < 1e15:
        raise InputError(f"--gpu_memory: got {text!r}; expected a size like 16GB.")
    return size


def lower_memory(recipe: Recipe, plan: Plan) -> str:
    """Return the message of training that ran out of memory although the plan said it fits.

    It names the one change that costs least: checkpointing, then a smaller batch, then articles.
    Reading once on one GPU has tried smaller batches already.
    """
    halved = recipe.read_once and process_count() == 1
    if not plan.gradient_checkpointing:
        change = "--gradient_checkpointing true"
    elif plan.tokens_per_batch > recipe.max_length and not halved:
        change = f"--tokens_per_batch {max(plan.tokens_per_batch // 2, recipe.max_length)}"
    else:
        change = f"--max_length {recipe.max_length // 2}"
    return (
        f"out of memory in training, with {plan} and gradient checkpointing "
        f"{'on' if plan.gradient_checkpointing else 'off'}. Free the GPU (nvidia-smi shows who "
        f"uses it), or start again with {change}; a saved checkpoint continues with --resume "
        f"{change} --resume_anyway."
    )


def _way_out(recipe: Recipe, estimate: MemoryEstimate, machine: Machine, training: bool) -> str:
    """Return what would lower the estimate, the strongest first."""
    steps = ["free the GPU (nvidia-smi shows who uses it)"] if machine.is_here else []
    if training and recipe.quantization == "none":
        steps.append("--quantization nf4")
    if training and recipe.gradient_checkpointing is False:
        steps.append("--gradient_checkpointing true")
    # A shorter batch helps only where base and adapter alone would fit.
    if training and estimate.total - estimate.activations < machine.free:
        if recipe.tokens_per_batch != "auto":
            steps.append("--tokens_per_batch auto")
        steps.append(f"--max_length {recipe.max_length // 2}")
    return ", ".join([*steps, "a smaller base (see the README's table)", "or a larger GPU"])
