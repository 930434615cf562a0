"""The base model in NF4 or 16 bit, its tokenizer, its LoRA adapter, and the device they run on."""

import shutil
import warnings
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
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

from dandap.checkpoints import MANIFEST, fault
from dandap.encoding import Example
from dandap.errors import InputError, first_line
from dandap.processes import process_count
from dandap.recipe import Recipe

# peft still reads the old name; nothing a user could change.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

HUB_TIMEOUT = 5  # seconds to connect
# Projections that some architectures fuse into one module.
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("c_attn", "qkv_proj", "query_key_value", "Wqkv")),
    **dict.fromkeys(("gate_proj", "up_proj"), ("gate_up_proj", "c_fc", "dense_h_to_4h")),
    "o_proj": ("attn.c_proj", "attention.dense"),
    "down_proj": ("mlp.c_proj", "dense_4h_to_h"),
}


def pick_device() -> torch.device:
    """This process's GPU, else the CPU. Several GPUs without a launcher: one is used, and a line says so."""
    if process_count() > 1:
        return PartialState(cpu=why_no_gpu() is not None).device
    if why_no_gpu():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        print(
            f"{torch.cuda.device_count()} GPUs visible, using the first; CUDA_VISIBLE_DEVICES chooses another, "
            "`accelerate launch fine_tune.py` trains on all"
        )
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def why_no_gpu() -> str | None:
    """The reason why torch cannot use a GPU here, or None if it can."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        built_for = [name.removeprefix("sm_").rstrip("af") for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
        oldest = min(map(int, built_for), default=0)
        if major * 10 + minor < oldest:
            return f"this torch is built for GPUs from sm_{oldest} on and this one is sm_{major}{minor}; choose a newer GPU"
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


def confirm_remote_code(recipe: Recipe, on_command_line: bool) -> None:
    """Before anything of the base is loaded: code of its repository runs only if the command itself says so, and loudly.

    A recipe or a run folder may come from somebody else.
    """
    if recipe.trust_remote_code and not on_command_line:
        raise InputError(
            f"the recipe wants to run Python code from {recipe.model}'s repository, which can do anything. Read that code, then "
            "add --trust_remote_code true to the command."
        )
    if recipe.trust_remote_code:
        print(f"WARNING: trust_remote_code is on: code from {recipe.model} runs on this machine")


def load_tokenizer(recipe: Recipe, folder: Path | None = None) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, or the one saved in a run's adapter folder."""
    source = str(folder or recipe.model)
    if not folder and not Path(source).is_dir():
        find_hub()
    options = {} if folder else {"revision": recipe.revision}
    with _loading(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=recipe.trust_remote_code, **options)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # Only a filler: padding is masked, and answers' own stop tokens stay in the loss. A stop token is taken where there
        # is nothing else.
        before, tokenizer.pad_token = tokenizer.pad_token, tokenizer.unk_token or tokenizer.bos_token or tokenizer.eos_token
        if before and before != tokenizer.pad_token:
            print(f"the base pads with its stop token {before!r}; {tokenizer.pad_token!r} is used instead, and masked")
    return tokenizer


def check_base(recipe: Recipe, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the recipe with the base's limits before any weight is loaded.

    Beyond learned positions (GPT-2, KoGPT2) there is nothing to look up, which CUDA reports as a device-side assert; beyond
    rotary ones a model answers, but was never trained there.
    """
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions and recipe.max_length > positions:
        told = f"max_length={recipe.max_length} is more than the {positions} positions of {recipe.model}"
        rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
        if not rotary:
            raise InputError(f"{told}: it cannot read further. Use --max_length {positions}.")
        print(f"WARNING: {told}, which was not trained beyond them; --max_length {positions} stays within")
    size = getattr(config, "vocab_size", None)
    if size and tokenizer.vocab_size > size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the base {recipe.model} embeddings for {size:,}: they do not "
            "belong together. Use the tokenizer that came with the base."
        )
    if size and tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= size:
        # Added for training elsewhere, and the base was not enlarged (Llama 2 with [PAD]).
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.bos_token or tokenizer.eos_token


def check_ids(examples: list[Example], config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse token ids that the base has no embedding for; on CUDA they end in a device-side assert."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    for example in examples if size else ():
        highest = max(max(example.prompt_ids), max(example.answer_ids, default=0))
        if highest >= size:
            token = tokenizer.convert_ids_to_tokens(highest)
            raise InputError(
                f"question {example.row.id}: the token {token!r} has the id {highest} and the base embeddings for {size}. The "
                "tokenizer was enlarged and the base was not; use the tokenizer that came with the base."
            )


@cache
def find_hub() -> None:
    """Ask once whether the hub answers; if not, only what is in the cache is used, without a minute of retries."""
    if constants.is_offline_mode():
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except HTTPError:
        pass  # it answers
    except OSError as error:
        print(f"{constants.ENDPOINT} cannot be reached ({first_line(error)}): only models already downloaded can be used")
        constants.HF_HUB_OFFLINE = True


def load_config(recipe: Recipe) -> PretrainedConfig:
    """The base model's architecture; InputError if it cannot be had."""
    if not Path(recipe.model).is_dir():
        find_hub()
    with _loading(recipe.model, "model"):
        return AutoConfig.from_pretrained(recipe.model, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code)


def load_base(recipe: Recipe, device: torch.device) -> PreTrainedModel:
    """The base model on `device`, 4-bit NF4 by default, frozen. Only safetensors are read."""
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
    """The kernel to load with: the recipe's, or sdpa; eager where logits are soft-capped, which sdpa cannot do.

    Training may go over to flex afterwards (dandap/attention.py).
    """
    if recipe.attention in ("sdpa", "eager"):
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
    # PEFT makes adapters float32 on 16-bit bases too; a bf16 adapter answers differently once it is reloaded.
    return get_peft_model(model, config, autocast_adapter_dtype=True)


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


def load_weights(model: PeftModel, checkpoint: Path) -> None:
    """Put a checkpoint's adapter into the model that is being trained."""
    weights = load_file(checkpoint / "adapter_model.safetensors")
    _refuse_other_keys(model, set(weights), checkpoint)
    set_peft_model_state_dict(model, weights)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter of a run on its base, for answering; refused where it is damaged or another base's."""
    if (folder / MANIFEST).is_file():
        if reason := fault(folder):
            raise InputError(
                f"the adapter {folder} cannot be used: {reason}. Put it back from a copy, or train again; if the change was "
                f"meant, remove {folder / MANIFEST}."
            )
    else:
        print(f"{folder} has no {MANIFEST}: whether it is whole cannot be told")
    with _loading(str(folder), "adapter"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below, by name
        try:
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
            found = set(load_file(folder / "adapter_model.safetensors"))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"adapter_config.json is not PEFT's ({first_line(error)})") from error
    _refuse_other_keys(adapted, found, folder)
    return adapted


def _refuse_other_keys(model: PeftModel, found: set[str], folder: Path) -> None:
    """Every tensor of an adapter must find its place, and every place its tensor; otherwise the bare base would answer."""
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        parts = [
            f"{len(names)} tensors {what}, as {names[0]}"
            for names, what in ((unknown, "of it are not in the model"), (missing, "are missing in it"))
            if names
        ]
        raise InputError(f"the adapter {folder} is not this base's: {'; '.join(parts)}. Name the run's own base, or train again.")


class _loading:
    """Turns what the hub and transformers raise while loading into one sentence that says what to do."""

    def __init__(self, source: str, what: str):
        self.source, self.what = source, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        kinds = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)
        if not isinstance(error, kinds) or isinstance(error, InputError):
            return False
        message = str(error).strip() or type(error).__name__
        raise InputError(f"the {self.what} {self.source!r} cannot be loaded: {self._advice(message)}") from error

    def _advice(self, message: str) -> str:
        folder = Path(self.source)
        if folder.is_dir():
            if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
                return (
                    "it has only .bin weights, which are pickles and can run code. Convert them once, where you trust them: "
                    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
                )
            return f"{message.splitlines()[0]} The folder needs config.json, tokenizer files and .safetensors weights."
        if "out of memory" in message:
            return "the GPU ran out of memory; free it (nvidia-smi shows who uses it) or choose a smaller base."
        if "safetensors" in message and ("bin" in message or "pytorch_model" in message):
            return "its repository has no safetensors weights, only pickles, which can run code; choose a converted copy."
        if "trust_remote_code" in message:
            return "it needs code from its repository; read that code, then pass --trust_remote_code true."
        if "gated" in message or "401" in message or "403" in message:
            return (
                "it is gated: accept its terms on huggingface.co and set the environment variable HF_TOKEN. A secret of Colab is "
                "none until a cell sets it: os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')."
            )
        return (
            f"{message.splitlines()[0]} Expected a folder or a hub id like owner/name. Without network "
            "(or with HF_HUB_OFFLINE=1) only folders and models already downloaded work."
        )
