"""Declare every option once, with its type, its default and its reason.

YAML files, the command line and --help all come from `Recipe`.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dandap import ROOT
from dandap.errors import InputError, nearest
from dandap.language import chosen

RECIPES_DIR = ROOT / "recipes"
SHIPPED = ("data/sample/", "data/demo_model")  # what recipes name of the project's own files
# Names that people know from other trainers -> ours.
KNOWN_AS = {
    **dict.fromkeys(
        ("model_name_or_path", "base_model", "model_name", "model_id", "base_model_name_or_path"),
        "model",
    ),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epoch"), "epochs"),
    **dict.fromkeys(
        (
            "max_seq_length",
            "max_seq_len",
            "cutoff_len",
            "sequence_len",
            "model_max_length",
            "seq_length",
        ),
        "max_length",
    ),
    **dict.fromkeys(("lora_rank", "r", "rank"), "lora_r"),
    **dict.fromkeys(("alpha", "lora_alpha_r"), "lora_alpha"),
    **dict.fromkeys(("lora_target", "target_modules", "lora_modules"), "lora_target_modules"),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization_bit", "quantize"), "quantization"
    ),
    **dict.fromkeys(
        ("bnb_4bit_use_double_quant", "use_double_quant", "use_nested_quant"), "double_quantization"
    ),
    **dict.fromkeys(
        ("bnb_4bit_compute_dtype", "bf16", "fp16", "torch_dtype", "dtype"), "compute_dtype"
    ),
    **dict.fromkeys(
        (
            "per_device_train_batch_size",
            "batch_size",
            "micro_batch_size",
            "gradient_accumulation_steps",
            "train_batch_size",
        ),
        "questions_per_step (batch size x accumulation)",
    ),
    **dict.fromkeys(("warmup_ratio", "num_warmup_steps"), "warmup_steps (a fraction or a count)"),
    **dict.fromkeys(("lr",), "learning_rate"),
    **dict.fromkeys(("lr_scheduler", "scheduler"), "lr_scheduler_type"),
    **dict.fromkeys(("optimizer",), "optim"),
    **dict.fromkeys(("attn_implementation", "flash_attention"), "attention"),
    **dict.fromkeys(
        ("eval_steps", "eval_strategy", "evaluation_strategy"),
        "evaluate_every (`200 steps` or `0.25 epochs`)",
    ),
    **dict.fromkeys(("early_stopping_patience", "early_stopping"), "patience"),
    **dict.fromkeys(("dataset", "data_path", "train_path", "dataset_name"), "train_file"),
    **dict.fromkeys(("test_path", "test_data"), "test_file"),
    **dict.fromkeys(("val_size", "val_set_size", "test_size"), "validation_fraction"),
    **dict.fromkeys(("prompt", "prompt_template", "prompt_style"), "template"),
    **dict.fromkeys(("noise_alpha", "neftune_alpha"), "neftune_noise_alpha"),
    **dict.fromkeys(("max_generated_tokens", "max_output_tokens"), "max_new_tokens"),
}


def _field(default: Any, reason: str, **limits: Any) -> Any:
    return Field(default, description=reason, **limits)


class Recipe(BaseModel):
    """Describes one experiment.

    A YAML file under recipes/ holds what differs from these defaults, and why.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    model: str = _field(
        "yanolja/EEVE-Korean-Instruct-10.8B-v1.0",
        "hub id or folder of the base model; "
        "the Korean-trained one of the 0.9025 system whose licence is open",
        min_length=1,
    )
    revision: str | None = _field(
        None, "commit, tag or branch of the base on the hub; pin it for a run that must repeat"
    )
    trust_remote_code: bool = _field(
        False, "run Python code from the model's repository; off, because that code can do anything"
    )
    task: str = _field("economic_qa", "what is asked and how it is scored (a file of tasks/)")
    template: str = _field("concise", "wording, by its name in prompts.py")
    train_file: str = _field(
        "data/train.csv",
        "questions with answers: a table or JSON (README), or a folder of them; "
        "several with commas",
    )
    test_file: str = _field(
        "data/test.csv",
        "questions to answer; gold answers are taken from its own columns or from "
        "<name>_answers.csv beside it",
    )
    columns: dict[str, str] = _field(
        {}, "the files' column names where they differ: context=본문,question=질문"
    )
    validation_fraction: float = _field(
        0.05,
        "share of articles held out of training to measure on; chosen by a hash of the article",
        ge=0,
        lt=1,
    )
    fold: str | None = _field(
        None,
        "the part of the articles to hold out instead of validation_fraction, as 2/5: the second "
        "of five; --folds 5 trains all of them",
    )
    evaluate_every: str | None = _field(
        "0.25 epochs",
        "validation while training, as `200 steps` or `0.25 epochs`; "
        "the adapter with the best score is kept if that is above the last one's by more than "
        "chance; or none",
    )
    evaluate_questions: int = _field(
        500,
        "most validation questions of one evaluation, whole articles; "
        "after training all are answered",
        ge=1,
    )
    patience: int | None = _field(
        None, "evaluations without a higher score after which training stops early", ge=1
    )
    max_length: int = _field(
        2048,
        "tokens of prompt and answer; max_length - max_new_tokens is the prompt's limit, "
        "in training and inference",
        ge=16,
    )
    on_overflow: Literal["trim", "select", "error"] = _field(
        "select",
        "an article too long for max_length: trim its end, "
        "select the sentences nearest to its questions, or stop",
    )
    max_new_tokens: int = _field(
        64,
        "most tokens of an answer at inference; the longest answer in 33,716 has 63 characters",
        ge=1,
    )
    samples: int = _field(
        1, "answers drawn per question; the one most like the others is taken", ge=1
    )
    temperature: float = _field(
        0.0,
        "0 takes the likeliest token; above, tokens are drawn (0.7 is usual with samples)",
        ge=0,
    )
    grounded: bool = _field(False, "the answer is always a literal piece of the article")
    choices: list[str] = _field(
        [], "the answers to choose from, the same for every question; none: any text"
    )
    choices_by: Literal["whole", "first_token"] = _field(
        "whole",
        "choices are compared by the log-probability of the whole text, "
        "or of the first token that tells them apart",
    )
    repetition_penalty: float = _field(
        1.0,
        "tokens that stand in the prompt or were said already are that much less likely; "
        "1.2 is usual for long answers",
        ge=1,
    )
    embedding_model: str = _field(
        "sentence-transformers/distiluse-base-multilingual-cased-v1",
        "sentence embeddings of wallpaper_qa: its score, its submission",
    )
    beams: int = _field(
        1,
        "width of a beam search; above 1 transformers' generate reads each question's article anew",
        ge=1,
    )
    quantization: Literal["nf4", "none"] = _field(
        "nf4", "nf4: 4-bit base (QLoRA), a quarter of the memory; none: 16-bit base (LoRA)"
    )
    double_quantization: bool = _field(
        True, "quantise the quantisation constants too; saves 0.4 bit a weight"
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = _field(
        "auto",
        "auto: bfloat16, float16 on GPUs without native bfloat16 (T4), float32 on CPU, where "
        "bfloat16 halves the time if the CPU has it in hardware",
    )
    lora_r: int = _field(16, "rank of the adapter", ge=1)
    lora_alpha: float = _field(32, "scale of the adapter; twice the rank is usual", gt=0)
    lora_dropout: float = _field(0.0, "dropout on the adapter's input", ge=0, lt=1)
    lora_target_modules: str | list[str] = _field(
        "all-linear", "modules that get an adapter: all-linear, or names as q_proj,v_proj"
    )
    learning_rate: float = _field(2e-4, "peak learning rate; QLoRA's for models of 7-13 B", gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = _field(
        "cosine", "how the learning rate falls"
    )
    warmup_steps: float = _field(
        0.03,
        "steps until the peak learning rate: below 1 a fraction of all steps, else a count",
        ge=0,
    )
    epochs: float = _field(1, "passes over the training questions", gt=0)
    read_once: bool = _field(
        True,
        "read an article once for all its questions of a step; "
        "false: TRL's way, the article again for each question",
    )
    questions_per_step: int = _field(
        16,
        "questions per optimizer step, on average where whole articles are read once (batch size x "
        "accumulation)",
        ge=1,
    )
    tokens_per_batch: Literal["auto"] | int = _field(
        "auto",
        "most tokens forwarded at once; a step's questions are split into batches of this size",
    )
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adamw_8bit",
        "sgd",
    ] = _field(
        "adamw_torch_fused",
        "optimizer, by transformers' name; adapters are small, so paging saves little",
    )
    weight_decay: float = _field(0.0, "AdamW's weight decay", ge=0)
    max_grad_norm: float = _field(1.0, "gradients longer than this are shortened to it", gt=0)
    gradient_checkpointing: Literal["auto"] | bool = _field(
        "auto",
        "recompute activations in the backward pass: a third slower, much less memory; auto: on "
        "CUDA when the estimate needs it",
    )
    attention: Literal["auto", "flex", "sdpa", "eager"] = _field(
        "auto",
        "attention kernel; auto: flex in training on GPUs from sm_80 where it works, else sdpa, "
        "eager for soft-capping",
    )
    neftune_noise_alpha: float | None = _field(
        None, "noise on embeddings while training (NEFTune); 5 is usual", gt=0
    )
    # numpy takes no seed of 2**32 or more.
    seed: int = _field(42, "seeds adapter, data order and dropout", ge=0, lt=2**32)
    output_dir: str = _field(
        "outputs", "folder of run folders; a mounted drive survives a lost machine", min_length=1
    )
    run_name: str | None = _field(
        None, "name of the run's folder; made from recipe and time if not given", min_length=1
    )
    save_steps: int = _field(200, "steps between checkpoints", ge=1)
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = _field(
        [], "experiment trackers that get the numbers of metrics.jsonl, with commas between them"
    )

    @field_validator("evaluate_every", mode="before")
    @classmethod
    def _steps_or_epochs(cls, value: Any) -> str | None:
        """Return `200 steps`, `1 epoch` or `200` as a number and its unit in the plural."""
        if value is None or value == "none":
            return None
        match = re.fullmatch(r"(\d+)(?: steps?)?|(\d+|\d*\.\d+) epochs?", str(value).strip())
        if not match or float(match[1] or match[2]) == 0:
            raise ValueError(
                "a number of steps or epochs above 0, as `200 steps` or `0.25 epochs`, or none"
            )
        return f"{match[1]} steps" if match[1] else f"{match[2]} epochs"

    @field_validator("fold", mode="before")
    @classmethod
    def _part_of_parts(cls, value: Any) -> str | None:
        """Take `2/5`: a part's number, and how many there are."""
        if value is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(value).strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
            raise ValueError("a part of the articles, as 2/5 for the second of five")
        return match[0]

    @field_validator("columns", mode="before")
    @classmethod
    def _columns_from_text(cls, value: Any) -> Any:
        """Read `context=본문,question=질문`, as the command line has it."""
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("NAME=COLUMN pairs with commas between them")
        return {name.strip(): column.strip() for name, _, column in pairs}

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _modules_from_text(cls, value: Any) -> Any:
        """Read `q_proj,v_proj`, as the command line has it; refuse an empty list."""
        if isinstance(value, str) and value != "all-linear":
            value = [name.strip() for name in value.split(",") if name.strip()]
        if value == []:
            raise ValueError(EXPECTED_OF["lora_target_modules"])
        return value

    @field_validator("choices", mode="before")
    @classmethod
    def _choices_from_text(cls, value: Any) -> Any:
        """Read `예,아니오`, as the command line has it; none is an empty list."""
        if not isinstance(value, str):
            return value or []
        choices = [choice.strip() for choice in value.split(",") if choice.strip()]
        if not choices:
            raise ValueError("answers with commas between them, or none")
        return choices

    @field_validator("report_to", mode="before")
    @classmethod
    def _trackers_from_text(cls, value: Any) -> Any:
        """Read `tensorboard,wandb`, as the command line has it; none is an empty list."""
        if not isinstance(value, str):
            return value or []
        return [name.strip() for name in value.split(",") if name.strip()]

    @model_validator(mode="after")
    def _one_way_of_answering(self) -> "Recipe":
        ways = {"beams": self.beams > 1, "choices": bool(self.choices), "grounded": self.grounded}
        # Drawing is no way of its own: grounded answers can be drawn, beams and choices cannot.
        drawn = self.samples > 1 or self.temperature > 0
        chosen = [name for name, is_chosen in ways.items() if is_chosen]
        if len(chosen) > 1 or (drawn and ways["beams"] | ways["choices"]):
            got = " and ".join(chosen + ["samples or temperature"] * drawn)
            raise ValueError(f"got {got}; they cannot be combined (samples and grounded can)")
        return self

    @field_validator("tokens_per_batch")
    @classmethod
    def _tokens_positive(cls, value: Any) -> Any:
        # A limit of the field would be compared with the word auto, too.
        if value != "auto" and value < 1:
            raise ValueError(EXPECTED_OF["tokens_per_batch"])
        return value

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> "Recipe":
        if self.max_new_tokens >= self.max_length:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in max_length "
                f"({self.max_length})"
            )
        return self

    @model_validator(mode="after")
    def _head_adapter_needs_read_once(self) -> "Recipe":
        if "lm_head" in self.lora_target_modules and not self.read_once:
            raise ValueError(
                "lora_target_modules holds lm_head, whose adapter TRL's trainer would bypass; "
                "drop it, or use read_once true"
            )
        return self

    @property
    def prompt_limit(self) -> int:
        """Return the most tokens that a prompt may have, in training and in inference."""
        return self.max_length - self.max_new_tokens

    @property
    def validates(self) -> bool:
        """Return whether some articles are held out of training."""
        return self.fold is not None or self.validation_fraction > 0

    def differences(self) -> dict[str, Any]:
        """Return what this recipe changes of the defaults: field -> value."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if value != type(self).model_fields[name].default
        }

    def to_yaml(self) -> str:
        """Return every field as YAML, which `load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(), allow_unicode=True, sort_keys=False)


# inference.py may change these of a run's recipe.
ANSWERING = (
    *(
        "max_length",
        "on_overflow",
        "max_new_tokens",
        "tokens_per_batch",
        "samples",
        "temperature",
        "grounded",
        "choices",
    ),
    *("choices_by", "beams", "repetition_penalty", "embedding_model", "seed", "trust_remote_code"),
)


def load_recipe(name: str | None, options: dict[str, Any]) -> Recipe:
    """Return the recipe of `name`, a YAML file or a name under recipes/, changed by `options`.

    What neither the file nor the command line's options set is as the defaults have it.
    """
    values = _resolved(find_recipe(name)) if name else {}
    return make_recipe({**values, **options}, name or "the command line", options)


def _resolved(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe file's fields, over those of the recipe it extends.

    `below` are the files that extend this one; one of them among its parents would be a circle.
    """
    fields = _read_yaml(path)
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    if not isinstance(parent, str):
        raise InputError(
            f"{path}: extends is {str(parent)[:100]!r}; expected the name of one recipe."
        )
    found = find_recipe(parent)
    if found.resolve() in (*below, path.resolve()):
        raise InputError(
            f"{path} extends {parent[:100]!r}, which extends it in turn. Take one `extends` out."
        )
    return {**_resolved(found, (*below, path.resolve())), **fields}


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, which is named by path or by its name under recipes/."""
    for path in (Path(name), RECIPES_DIR / f"{name}.yaml"):
        # File systems take names of 255 bytes; is_file fails with an OSError on a longer one.
        if len(path.name.encode()) <= 255 and path.is_file():
            return path
    known = sorted(path.stem for path in RECIPES_DIR.glob("*.yaml"))
    raise InputError(
        f"got recipe {name[:100]!r}.{nearest(name, known)} Expected a YAML file or one of "
        f"{', '.join(known)}."
    )


def make_recipe(values: dict[str, Any], where: str, options: Collection[str] = ()) -> Recipe:
    """Return a checked Recipe; an InputError says of each wrong value what was got and expected.

    `where` is what it blames, but for the values that the command line's `options` set.
    """
    problems = [
        f"{where}: got the unknown key {key!r}.{_right_name(str(key), Recipe.model_fields)}"
        for key in values
        if key not in Recipe.model_fields
    ]
    # `none` clears an option, but is one of quantization's own values.
    values = {
        key: None if value in ("none", "null") and key not in ("quantization",) else value
        for key, value in values.items()
        if key in Recipe.model_fields
    }
    for field in ("model", "train_file", "test_file"):
        if isinstance(values.get(field), str):
            values[field] = ",".join(map(_found, values[field].split(",")))
    try:
        recipe = Recipe(**values)
    except ValidationError as error:
        raise InputError("\n".join([*problems, *_problems(error, where, options)])) from error
    if problems:
        raise InputError("\n".join(problems))
    return recipe


def _found(name: str) -> str:
    """Return where a file lies that ships with the project, whatever folder people stand in.

    All other paths, and a file of the same name where they stand, are theirs and stay as they are.
    """
    elsewhere = name.startswith(SHIPPED) and not Path(name).exists() and (ROOT / name).exists()
    return str(ROOT / name) if elsewhere else name


# What pydantic's types of errors expect, in our words; {gt} and the like are the field's limits.
EXPECTED = {
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text",
    "list_type": "a list",
    "dict_type": "NAME=COLUMN pairs with commas between them",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
}


# Of fields that take several kinds of values, which pydantic tries one by one.
EXPECTED_OF = {
    "gradient_checkpointing": "auto, true or false",
    "lora_target_modules": "names of modules with commas between them, or all-linear",
    "tokens_per_batch": "auto or a whole number of at least 1",
}


def _problems(error: ValidationError, where: str, options: Collection[str]) -> Iterator[str]:
    """Say pydantic's errors in our words, one a field: who set what, and what was expected."""
    by_field: dict[str, dict] = {}
    for details in error.errors():
        if details["loc"]:
            by_field.setdefault(str(details["loc"][0]), details)
            continue
        # An error of the whole recipe: its message says all but whose it is.
        said = details["msg"].removeprefix("Value error, ")
        is_of_options = any(re.search(rf"\b{name}\b", said) for name in options)
        yield said if is_of_options else f"{where}: {said}"
    for field, details in by_field.items():
        source = f"--{field}" if field in options else f"{where}: {field}"
        given = details["input"]
        got = repr(given) if _is_short(given) else f"a {type(given).__name__}"
        # In English, as --help has it.
        reason = f" ({Recipe.model_fields[field].description})" if chosen() == "en" else ""
        yield f"{source}: got {got}, expected {_expected(field, details)}{reason}"


def _expected(field: str, details: dict) -> str:
    """Return what a field should have been."""
    kind, limits = details["type"], details.get("ctx", {})
    if kind == "value_error":  # of a validator of ours
        return details["msg"].removeprefix("Value error, ")
    if field in EXPECTED_OF:
        return EXPECTED_OF[field]
    if kind == "literal_error":  # "'nf4' or 'none'"
        return f"one of {limits['expected'].replace(' or ', ', ')}"
    numbers = {
        name: f"{limit:g}" for name, limit in limits.items() if isinstance(limit, float | int)
    }
    # The text of a kind that nobody thought of is pydantic's.
    return EXPECTED[kind].format(**numbers) if kind in EXPECTED else details["msg"]


def _is_short(value: Any) -> bool:
    """Say whether a value can be shown: YAML's aliases make lists whose text has 700 MB."""
    return not isinstance(value, list | dict) or (
        len(value) <= 20 and not any(isinstance(v, list | dict) for v in value)
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    # yaml itself raises all but the first, as for a date or a number that is none (`!!int x`).
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not valid YAML ({str(error)[:300]}). "
            "Expected lines like `learning_rate: 1e-4`."
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(
            f"{path} holds {type(values).__name__}; expected lines like `learning_rate: 1e-4`."
        )
    return values


def _right_name(name: str, known) -> str:
    """Return a hint at the option that people mean by `name`: a translation, else the nearest."""
    # An entry may hold a remark after the name, as "warmup_steps (a fraction or a count)".
    if KNOWN_AS.get(name, "").split(" ")[0] in known:
        return f" Here it is {KNOWN_AS[name]}."
    return nearest(name, known)
