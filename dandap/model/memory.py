"""Estimate the memory of a run and plan its batches; activations are counted on a real layer."""

import itertools
import math
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import psutil
import torch
from transformers import (
    AttentionInterface,
    DynamicCache,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.pytorch_utils import Conv1D

from dandap.errors import InputError
from dandap.model.adapter import add_adapter
from dandap.model.device import empty_model, pick_compute_dtype, why_no_gpu
from dandap.model.distributed import from_main, world_size
from dandap.model.load import decoder_layers, pick_attention
from dandap.recipe import Recipe
from dandap.tree.attention import head_size, largest, why_no_flex
from dandap.tree.logits import CHUNK
from dandap.tree.masks import MIXERS
from dandap.tree.mixers import mixers_of
from dandap.tree.token_tree import TokenTree, collate, grow

GB = 1e9
CPU_LIMIT = 1e9  # parameters; a CPU would train a larger base for weeks
BATCH_TOKENS = (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512)
MOST_TOKENS = {("cuda", True): 16384, ("cuda", False): 65536}  # by device and whether it trains
MOST_TOKENS |= {("cpu", True): 4096, ("cpu", False): 16384}
ROOM = 1024  # tokens in a batch beyond the longest article: 16 questions
COPY_SHARE = 0.5  # of free main memory, at most, for dequantized weights
ANSWER_SHARE = 1 / 16  # of a batch's tokens: twice that of 5 short answers on 500 tokens
QUESTION_TOKENS = 100  # unshared tokens per prompt, with its part of the article
QUESTIONS, OWN_TOKENS = 6, 30  # per article, and per question, assumed for mixers
STATES = ("conv_states", "recurrent_states")  # of transformers' cache layers
READ_TOKENS = 8192  # prompt tokens per forward pass; a batch may cache the keys of many more


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: float
    adapter: float  # in training with gradients and optimizer
    activations: float  # in answering the KV cache and the work of one layer
    parameters: int

    @property
    def total(self) -> float:
        """Return the sum plus 1 GB for the CUDA context, workspaces and fragmentation."""
        return self.weights + self.adapter + self.activations + GB

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB (base {self.weights / GB:.1f}, adapter "
            f"{self.adapter / GB:.1f}, activations {self.activations / GB:.1f}, overhead 1.0)"
        )


@dataclass(frozen=True)
class Plan:
    """Device, dtype, batch size and checkpointing of a run."""

    device: torch.device
    compute_dtype: torch.dtype
    tokens_per_batch: int
    gradient_checkpointing: bool
    estimate: MemoryEstimate
    free: float | None  # bytes; None on CPU
    flex: bool = False  # whether training uses FlexAttention
    dequantized: bool = False  # whether NF4 weights are dequantized once
    merged: bool = False  # whether the adapter is merged for answering on a GPU

    def __str__(self) -> str:
        free = "" if self.free is None else f" of {self.free / GB:.1f} GB free"
        return (
            f"device {self.device}, compute {str(self.compute_dtype).removeprefix('torch.')}, "
            f"estimated memory {self.estimate}{free}; {self.tokens_per_batch} tokens per batch"
            f"{', gradient checkpointing' if self.gradient_checkpointing else ''}"
            f"{', NF4 weights dequantized once' if self.dequantized else ''}"
            f"{', adapter merged' if self.merged else ''}"
        )


class DoesNotFit(InputError):
    """The base needs more memory than is free."""


class _FusedAttention(torch.autograd.Function):
    """Saves the tensors of a fused attention kernel without computing attention."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)  # kernels return the query's strides
        sums = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _counted_attention(module, query, key, value, attention_mask, **options):
    if attention_mask is not None:  # SDPA repeats keys, FlexAttention does not
        groups = getattr(module, "num_key_value_groups", 1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("counted", _counted_attention)


def _fused_dropout(input, p=0.5, training=True, inplace=False):
    """Apply dropout as on CUDA, where the backward needs one byte per element."""
    return torch.native_dropout(input, p, training)[0] if p and training else input


def count_layers(
    recipe: Recipe,
    config: PretrainedConfig,
    dtype: torch.dtype,
    flex: bool,
    tree: TokenTree | None = None,
) -> tuple[float, float, int]:
    """Return the bytes autograd saves per token in all layers and in the largest one.

    The third value is the number of the adapter's parameters. `tree` is for layers with mixers.
    """
    text: Any = config.get_text_config()
    model = empty_model(config, recipe.trust_remote_code)
    layers = decoder_layers(model)
    kinds = set(getattr(text, "layer_types", None) or ())
    if not kinds & MIXERS:
        del layers[2:]  # assume that the others are like the second
    eager = not flex and pick_attention(recipe, text) == "eager"
    model.set_attn_implementation("eager" if eager else "counted")
    # add_adapter seeds the generator and warns; `to` casts the adapter as autocast does.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        adapted = add_adapter(model.requires_grad_(False), recipe).to(dtype).train()
    storages: set[torch.UntypedStorage] = set()
    marks: list[set[torch.UntypedStorage]] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storages.add(tensor.untyped_storage())
        return tensor

    def mark(*_: object) -> None:
        marks.append(storages.copy())

    for layer in layers:
        layer.register_forward_pre_hook(mark)
    layers[-1].register_forward_hook(mark)
    length = recipe.max_length
    if mixers := mixers_of(adapted):  # mixers pad branches and copy states: count on a tree
        article = [0] * max(length - QUESTIONS * OWN_TOKENS, OWN_TOKENS)
        asked = [[number] * (OWN_TOKENS - 1) for number in range(1, QUESTIONS + 1)]
        typical = grow(([*article, *each], [0, 0]) for each in asked)
        batch = collate([tree or typical], pad_id=0, segments="train")
        length = batch["input_ids"].shape[1]
        mixers.read_next({name: tensor.to("meta") for name, tensor in batch.items()})
    with (
        torch.device("meta"),
        torch.autograd.graph.saved_tensors_hooks(save, save),
        mock.patch.object(torch.nn.functional, "dropout", _fused_dropout),
    ):
        mask = None if flex else torch.empty(1, 1, length, length, dtype=dtype)
        model.base_model(
            inputs_embeds=torch.empty(1, length, text.hidden_size, dtype=dtype, requires_grad=True),
            attention_mask=dict.fromkeys(kinds, mask) if "sliding_attention" in kinds else mask,
            position_ids=torch.zeros(1, length, dtype=torch.long),
            use_cache=False,
        )
    weights = {parameter.untyped_storage() for parameter in model.parameters()}
    saved = [
        sum(storage.nbytes() for storage in after - before - weights) / length
        for before, after in itertools.pairwise(marks)
    ]
    others = text.num_hidden_layers - len(layers)
    saved = saved if kinds & MIXERS else [saved[-1]] * text.num_hidden_layers
    in_a_layer = sum(p.numel() for p in layers[-1].parameters() if p.requires_grad)
    adapter = adapted.get_nb_trainable_parameters()[0] + others * in_a_layer
    return sum(saved), max(saved), adapter


def count_states(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one branch's recurrent and convolutional states, in all layers."""
    if not set(getattr(config, "layer_types", None) or ()) & MIXERS:
        return 0
    cache = DynamicCache(config=config)
    with torch.device("meta"):
        ids = torch.zeros(1, 2, dtype=torch.long)
        model: Any = empty_model(config)
        model.to(dtype)(input_ids=ids, past_key_values=cache, use_cache=True)
    states = (getattr(layer, name, {}) for layer in cache.layers for name in STATES)
    return sum(state.nbytes for each in states for state in each.values())


class Footprint:
    """Estimates the memory of a base with an adapter on one device."""

    def __init__(
        self,
        recipe: Recipe,
        config: PretrainedConfig,
        device: torch.device,
        dtype: torch.dtype,
        flex: bool = False,
        tree: TokenTree | None = None,
    ):
        self.recipe, self.device, self.dtype, self.flex = recipe, device, dtype, flex
        self.config: Any = config.get_text_config()
        self.hidden, self.each = self.config.hidden_size, dtype.itemsize
        self.inner = largest(self.config, "intermediate_size") or 4 * self.hidden
        try:
            count = count_layers(recipe, config, dtype, flex, tree)
            self.state_bytes = count_states(self.config, dtype)
        except Exception:  # noqa: BLE001
            # Data-dependent code, such as a router, fails on meta: count a Llama of these sizes.
            names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
            sizes: dict[str, Any] = {name: largest(self.config, name) for name in names}
            sizes["num_attention_heads"] = sizes["num_attention_heads"] or 1  # Mamba has none
            llama = LlamaConfig(hidden_size=self.hidden, intermediate_size=self.inner, **sizes)
            everywhere = recipe.model_copy(update={"lora_target_modules": "all-linear"})
            count = count_layers(everywhere, llama, dtype, flex)
            self.state_bytes = 0
        self.saved_bytes, self.layer_bytes, self.adapter = count
        # Bytes of dense masks per token, (rows, length, length): one per kind of layer.
        is_mixed = "sliding_attention" in (getattr(self.config, "layer_types", None) or ())
        self.mask_bytes = recipe.max_length * self.each * (2 if is_mixed else 1)
        model = empty_model(config, recipe.trust_remote_code)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.weights: float = self.parameters * self.each
        if recipe.quantization == "nf4":
            # Half a byte per weight of linear layers except the head, a float32 constant per 64
            # weights (or 8 bits, and a float32 per 256 constants), and one dequantized matrix.
            head = model.get_output_embeddings()
            linear = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
            weights = [module.weight.numel() for module in linear if module is not head]
            constants = (8 + 32 / 256 if recipe.double_quantization else 32) / 64 / 8
            self.weights += sum(weights) * (0.5 + constants - self.each) + max(weights) * self.each

    def training(
        self, tokens: int, checkpointing: bool, answer_share: float = ANSWER_SHARE
    ) -> MemoryEstimate:
        """Estimate the peak of a training step on batches of `tokens` tokens.

        `answer_share` is the share of the tokens that predict an answer.
        """
        layers = self.config.num_hidden_layers
        one_layer, saved = tokens * self.layer_bytes, tokens * self.saved_bytes
        if checkpointing:
            saved = layers * tokens * self.hidden * self.each
        ends = tokens * self.hidden * (4 + self.each)  # embeddings and the last norm
        masks = 0 if self.flex else tokens * self.mask_bytes
        # The peak is at the loss (logits, their gradient, a soft cap's steps, two float32 chunks)
        # or in a layer's backward, which recomputes a checkpointed layer.
        logits = tokens * answer_share * self.config.vocab_size
        copies = 5 if getattr(self.config, "final_logit_softcapping", None) else 2
        loss = logits * copies * self.each + 2 * 4 * min(CHUNK, logits)
        backward = tokens * (self.inner + 2 * self.hidden) * self.each
        moment = max(loss, backward + (one_layer if checkpointing else 0))
        activations = saved + ends + masks + moment
        # Weight, gradient and AdamW's two moments in float32, and autocast's copy.
        adapter = self.adapter * (16 if checkpointing or self.each == 4 else 16 + self.each)
        return MemoryEstimate(self.weights, adapter, activations, self.parameters)

    def answering(self, tokens: int) -> MemoryEstimate:
        """Estimate the peak of answering batches of `tokens` tokens."""
        config, recipe, each = self.config, self.recipe, self.each
        heads, size = largest(config, "num_attention_heads") or 1, head_size(config)
        kv_heads = largest(config, "num_key_value_heads") or heads
        cache = 2 * config.num_hidden_layers * tokens * kv_heads * size * each
        # Either query, key, value and output (and scores with eager attention), or the MLP's
        # activation and an adapter's output.
        eager = pick_attention(recipe, config) == "eager"
        scores = recipe.max_length * heads * (each + 4) if eager else 0
        widest = max(4 * self.inner * each, 4 * heads * size * each + scores)
        work = min(tokens, READ_TOKENS) * (3 * self.hidden * each + widest + self.mask_bytes)
        answer = recipe.samples * expected_length(recipe.max_new_tokens)
        rows = tokens * recipe.samples / (QUESTION_TOKENS + answer)
        logits = rows * config.vocab_size * 4 * 3  # in float32; masked; with noise
        states = 2 * rows * self.state_bytes  # of prompts, and of their branches
        activations = cache + work + logits + states
        return MemoryEstimate(self.weights, each * self.adapter, activations, self.parameters)


def expected_length(max_new_tokens: int) -> int:
    """Return the number of answer tokens to allocate initially."""
    # Most answers are short; a CUDA step that needs more is captured again.
    return min(max_new_tokens, max(16, math.ceil(max_new_tokens / 4)))


def available_memory() -> float:
    """Return the available main memory in bytes."""
    return psutil.virtual_memory().available


def reject_large_on_cpu(recipe: Recipe, model: PreTrainedModel) -> None:
    """Reject a base that is too large for a CPU; `model` may be empty."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > CPU_LIMIT:
        raise InputError(
            f"{recipe.model} has {parameters / GB:.1f}B parameters and needs a GPU: "
            f"{why_no_gpu()}. `python fine_tune.py --recipe demo` runs on any machine."
        )


def make_plan(
    recipe: Recipe, config: PretrainedConfig, device: torch.device, training: bool
) -> Plan:
    """Select attention, batch size and checkpointing; raise DoesNotFit if nothing fits."""
    dtype, reason = pick_compute_dtype(recipe, device, config), None
    if training and device.type == "cpu" and dtype is torch.float16:
        raise InputError(
            "float16 cannot be trained on a CPU. Use --compute_dtype float32 or bfloat16."
        )
    if training:
        reason = why_no_flex(recipe, config, device, dtype)
        kernel = f"{pick_attention(recipe, config)} ({reason})" if reason else "flex"
        print(f"attention: {kernel}")
    if device.type == "cpu":
        reject_large_on_cpu(recipe, empty_model(config, recipe.trust_remote_code))
    footprint = Footprint(recipe, config, device, dtype, flex=training and reason is None)
    if device.type == "cuda":
        return fit_plan(footprint, torch.cuda.mem_get_info(device)[0], training)
    return fit_plan(footprint, available_memory(), training)


def refit_plan(
    plan: Plan,
    recipe: Recipe,
    config: PretrainedConfig,
    answer_share: float,
    tree: TokenTree | None = None,
) -> Plan:
    """Recompute the training plan from the data: the share of answer tokens, and a tree."""
    if plan.free is None:
        return plan
    footprint = Footprint(recipe, config, plan.device, plan.compute_dtype, plan.flex, tree)
    return fit_plan(footprint, plan.free, True, answer_share)


def fit_plan(
    footprint: Footprint, free: float, training: bool, answer_share: float = ANSWER_SHARE
) -> Plan:
    """Return the fastest plan for `free` bytes: the largest batch, if possible uncheckpointed.

    If none fits, raise DoesNotFit on a GPU and warn on a CPU.
    """
    recipe, device = footprint.recipe, footprint.device
    on_cpu, longest = device.type == "cpu", recipe.max_length
    most = MOST_TOKENS[device.type, training]
    # A batch has at least one example, and on a GPU at most one step.
    most = max(most, longest + ROOM) if on_cpu else most
    if training and not on_cpu:
        most = min(most, recipe.questions_per_step * longest)
    sizes = [size for size in {*BATCH_TOKENS, longest + ROOM} if longest < size <= most]
    sizes = [*sorted(sizes, reverse=True), longest]
    if recipe.tokens_per_batch != "auto":
        sizes = [recipe.tokens_per_batch]
    auto = training and recipe.gradient_checkpointing == "auto"
    settings = [False, True] if auto else [training and recipe.gradient_checkpointing is True]
    for tokens, checkpointing in ((size, on) for on in settings for size in sizes):
        if training:
            estimate = footprint.training(tokens, checkpointing, answer_share)
        else:
            estimate = footprint.answering(tokens)
        if estimate.total <= free:
            break
    else:
        if not on_cpu:
            # Smaller batches help only if base and adapter fit.
            base_fits = training and estimate.total - estimate.activations < free
            suggestions = {
                "--quantization nf4, ": training and recipe.quantization == "none",
                "--gradient_checkpointing true, ": training and not auto and not checkpointing,
                "--tokens_per_batch auto, ": base_fits and recipe.tokens_per_batch != "auto",
                f"--max_length {longest // 2}, ": base_fits,
            }
            raise DoesNotFit(
                f"{recipe.model} needs about {estimate}; {free / GB:.1f} GB are free. Try "
                f"{''.join(each for each, helps in suggestions.items() if helps)}a smaller base "
                "(README.md), or a GPU with more free memory (nvidia-smi)."
            )
        print(
            f"WARNING: {recipe.model} may need {estimate}; {free / GB:.1f} GB of main memory are "
            "free. Close programs or lower --max_length."
        )
    limit = None if on_cpu else free
    plan = Plan(device, footprint.dtype, tokens, checkpointing, estimate, limit, footprint.flex)
    # 16- or 32-bit weights are faster: dequantized on a CPU, merged for answering on a GPU.
    whole = replace(estimate, weights=footprint.parameters * footprint.each)
    is_nf4 = recipe.quantization == "nf4"
    if on_cpu and is_nf4 and whole.weights <= COPY_SHARE * free and whole.total <= free:
        return replace(plan, estimate=whole, dequantized=True)
    if not on_cpu and not training and whole.total <= free:
        return replace(plan, estimate=whole, dequantized=is_nf4, merged=True)
    return plan


def broadcast_plan(plan: Plan) -> Plan:
    """Return the main process's plan for this device: equal batches give equal answers."""
    first = from_main(partial(replace, plan, device=torch.device("cpu")))
    return replace(first, device=plan.device)


def out_of_memory_advice(recipe: Recipe, plan: Plan) -> str:
    """Return the error message for training that ran out of memory."""
    # Reading once on one GPU has already halved its batches.
    halved = recipe.read_once and world_size() == 1
    if not plan.gradient_checkpointing:
        change = "--gradient_checkpointing true"
    elif plan.tokens_per_batch > recipe.max_length and not halved:
        change = f"--tokens_per_batch {max(plan.tokens_per_batch // 2, recipe.max_length)}"
    else:
        change = f"--max_length {recipe.max_length // 2}"
    return (
        f"out of memory in training, with {plan}. Free the GPU (see nvidia-smi), or train with "
        f"{change}; to resume a checkpoint, use --resume {change} --resume_anyway."
    )
