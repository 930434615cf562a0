"""Define the recipe: every option of an experiment, with its type, default and help text.

`Recipe` defines the YAML files, the command line and --help.
"""

import math
import re
import reprlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dandap import ROOT
from dandap.errors import InputError, did_you_mean

RECIPES_DIR = ROOT / "recipes"
AUTO_STEPS, MOST_EPOCHS = 110, 3  # of epochs: auto
SHIPPED = ("data/sample/", "data/demo_model")  # the demo's data and base, named by recipes
# Groups of --help, by their first field.
GROUPS = {
    "model": "model",
    "task": "data",
    "lora_r": "adapter",
    "learning_rate": "training",
    "max_new_tokens": "generation (validation uses it too)",
    "validation_fraction": "evaluation",
    "output_dir": "output",
}


class Recipe(BaseModel):
    """The options of one experiment; the text below each field is its --help."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    model: str = Field("yanolja/EEVE-Korean-Instruct-10.8B-v1.0", min_length=1)
    """hub id or folder of the base"""
    revision: str | None = None
    """commit, tag or branch of the base model"""
    trust_remote_code: bool = False
    """run Python code from the model's repository"""
    quantization: Literal["nf4", "none"] = "nf4"
    """nf4: 4-bit base (QLoRA); none: 16-bit base (LoRA)"""
    double_quantization: bool = True
    """also quantize the quantization constants"""
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: bfloat16; float16 on a T4, float32 on older CPUs"""
    attention: Literal["auto", "flex", "sdpa", "eager"] = "auto"
    """auto: flex for training on sm_80 or newer, else sdpa or eager"""

    task: str = "economic_qa"
    """kind of question and its score: a module in tasks/"""
    template: str = "concise"
    """prompt template, by its name in prompts.py"""
    train_file: str = "data/train.csv"
    """questions with answers; separate several files by commas"""
    test_file: str = "data/test.csv"
    """questions to answer"""
    columns: dict[str, str] = {}
    """renamed columns: context=본문,question=질문"""
    max_length: int = Field(2048, ge=16)
    """tokens of prompt and answer together"""
    on_overflow: Literal["trim", "select", "error"] = "select"
    """long articles: trim, select sentences, or stop"""

    lora_r: int = Field(16, ge=1)
    """rank of the adapter"""
    lora_alpha: float = Field(32, gt=0)
    """scale of the adapter; usually twice the rank"""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """dropout on the adapter's input"""
    lora_target_modules: str | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """adapted modules: all-linear, or q_proj,v_proj"""
    init_adapter: str | None = Field(None, min_length=1)
    """run or PEFT folder with the adapter to start from"""

    learning_rate: float = Field(2e-4, gt=0)
    """peak learning rate; small bases need more"""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """learning rate schedule"""
    warmup_steps: float = Field(0.03, ge=0)
    """warmup steps; below 1, a fraction of all steps"""
    epochs: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """passes over the training data; auto: about 110 steps"""
    read_once: bool = True
    """read an article once for its questions; false: like TRL"""
    questions_per_step: int = Field(16, ge=1)
    """questions per optimizer step, on average"""
    tokens_per_batch: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """maximum tokens per forward pass"""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "adamw_8bit",
        "sgd",
    ] = "adamw_torch_fused"
    """optimizer, by transformers' name"""
    weight_decay: float = Field(0.0, ge=0)
    """weight decay of AdamW"""
    max_grad_norm: float = Field(1.0, gt=0)
    """maximum gradient norm, for clipping"""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """recompute activations to save memory"""
    compile: Literal["auto"] | bool = "auto"
    """compile decoder layers; auto: in long runs, if faster"""
    neftune_noise_alpha: float | None = Field(None, gt=0)
    """noise on embeddings (NEFTune); 5 is usual"""
    seed: int = Field(42, ge=0, lt=2**32)  # numpy's limit
    """seed of adapter, data order, dropout and sampling"""

    max_new_tokens: int = Field(64, ge=1)
    """maximum tokens per answer"""
    samples: int = Field(1, ge=1)
    """answers sampled per question; one is selected"""
    temperature: float = Field(0.0, ge=0)
    """0: greedy decoding; 0.7 is usual for samples"""
    grounded: bool = False
    """restrict answers to literal spans of the article"""
    choices: list[str] = []
    """the answers to choose from, for every question: 예,아니오"""
    choices_by: Literal["whole", "first_token"] = "whole"
    """rank choices by all tokens, or the first that differ"""
    repetition_penalty: float = Field(1.0, ge=1)
    """penalty on repeated tokens; 1.2 is usual for long answers"""
    beams: int = Field(1, ge=1)
    """beam width; above 1, each question reads its article"""
    embedding_model: str = "sentence-transformers/distiluse-base-multilingual-cased-v1"
    """embeddings of wallpaper_qa"""

    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """fraction of articles held out for validation"""
    fold: str | None = None
    """hold out fold 2 of 5 instead: 2/5"""
    evaluate_every: str | None = "0.25 epochs"
    """200 steps, 0.25 epochs, or none"""
    evaluate_questions: int = Field(500, ge=1)
    """maximum questions per evaluation during training"""
    patience: int | None = Field(None, ge=1)
    """stop after N evaluations without a better score"""

    output_dir: str = Field("outputs", min_length=1)
    """folder of the runs"""
    run_name: str | None = Field(None, min_length=1)
    """folder name of the run (default: recipe and time)"""
    save_steps: int = Field(200, ge=1)
    """steps between checkpoints"""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """experiment trackers, separated by commas"""

    @field_validator("evaluate_every", mode="before")
    @classmethod
    def _normalize_interval(cls, value: Any) -> str | None:
        if value is None or value == "none":
            return None
        match = re.fullmatch(r"(\d+)(?: steps?)?|(\d+|\d*\.\d+) epochs?", str(value).strip())
        if not match or float(match[1] or match[2]) == 0:
            raise ValueError("steps or epochs above 0 (`200 steps`, `0.25 epochs`) or `none`")
        return f"{match[1]} steps" if match[1] else f"{match[2]} epochs"

    @field_validator("fold", mode="before")
    @classmethod
    def _check_fold(cls, value: Any) -> str | None:
        if value is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", str(value).strip())
        if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
            raise ValueError("a fold like 2/5, the second of five")
        return match[0]

    @field_validator("columns", mode="before")
    @classmethod
    def _split_columns(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value or {}
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("NAME=COLUMN pairs separated by commas")
        return {name.strip(): column.strip() for name, _, column in pairs}

    @field_validator("lora_target_modules", "choices", "report_to", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "all-linear":
            return [name.strip() for name in value.split(",") if name.strip()]
        return [] if value is None else value

    @model_validator(mode="after")
    def _check_combinations(self) -> "Recipe":
        modes = {"beams": self.beams > 1, "choices": bool(self.choices), "grounded": self.grounded}
        chosen = [name for name, is_chosen in modes.items() if is_chosen]
        is_sampled = self.samples > 1 or self.temperature > 0
        if len(chosen) > 1 or (is_sampled and chosen and not self.grounded):
            got = " and ".join(chosen + ["samples or temperature"] * is_sampled)
            raise ValueError(f"{got} cannot be combined (samples and grounded can)")
        if self.prompt_limit < 1:
            raise ValueError(
                f"max_new_tokens ({self.max_new_tokens}) leaves no room for a prompt in max_length "
                f"({self.max_length})"
            )
        if "lm_head" in self.lora_target_modules and not self.read_once:
            raise ValueError(
                "lora_target_modules has lm_head, which TRL's trainer ignores; remove it, or set "
                "read_once true"
            )
        return self

    @property
    def prompt_limit(self) -> int:
        """The maximum prompt length in tokens, in training and in answering."""
        return self.max_length - self.max_new_tokens

    @property
    def validates(self) -> bool:
        """Whether some articles are held out for validation."""
        return self.fold is not None or self.validation_fraction > 0

    def epochs_for(self, questions: int) -> float:
        """Return the epochs for a number of training questions."""
        if self.epochs != "auto":
            return self.epochs
        return min(MOST_EPOCHS, max(1, round(AUTO_STEPS / self.steps_per_epoch(questions))))

    def steps_per_epoch(self, questions: int) -> int:
        """Return the optimizer steps of an epoch."""
        return math.ceil(questions / self.questions_per_step)

    def differences(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, with their values."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return {name: value for name, value in self.model_dump().items() if value != defaults[name]}

    def to_yaml(self) -> str:
        """Return all fields as YAML, which `load_recipe` reads back."""
        return yaml.safe_dump(self.model_dump(), allow_unicode=True, sort_keys=False)


# The fields that may differ between training and answering.
ANSWERING = tuple(
    "max_length on_overflow max_new_tokens tokens_per_batch samples temperature grounded choices "
    "choices_by beams repetition_penalty embedding_model seed trust_remote_code".split()
)


def load_recipe(name: str | None, options: dict[str, Any]) -> Recipe:
    """Load a recipe from a YAML file or by its name in recipes/, overridden by `options`."""
    values = _read_fields(find_recipe(name)) if name else {}
    return make_recipe({**values, **options}, name or "the command line", options)


def named_recipes() -> dict[str, Path]:
    """Return the recipes in recipes/ and its subfolders, by name."""
    settings = {RECIPES_DIR / "accelerate", RECIPES_DIR / "launch"}  # not recipes
    files = (path for path in RECIPES_DIR.rglob("*.yaml") if path.parent not in settings)
    return {path.stem: path for path in sorted(files)}


def find_recipe(name: str) -> Path:
    """Return the YAML file of a recipe, given by path or by its name in recipes/."""
    known = named_recipes()
    # is_file fails with an OSError on names above the 255 bytes of file systems.
    if len(Path(name).name.encode()) <= 255 and Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    raise InputError(
        f"got recipe {name[:100]!r}.{did_you_mean(name, known)} Expected a YAML file or one of "
        f"{', '.join(known)}."
    )


def _read_fields(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the fields of a recipe file and of the recipes that it extends."""
    if path.resolve() in below:
        raise InputError(f"{path} extends itself through {below[-1]}. Remove one `extends`.")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        parent = fields.pop("extends", None)
    # PyYAML does not wrap errors of int(), date() and deep nesting.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a recipe ({str(error)[:300]}); expected lines like `epochs: 2`."
        ) from error
    if parent is None:
        return fields
    return {**_read_fields(find_recipe(str(parent)), (*below, path.resolve())), **fields}


def make_recipe(values: dict[str, Any], where: str, options: Collection[str] = ()) -> Recipe:
    """Return a validated recipe; errors name the source `where`, or the option if given."""
    # `none` clears a field, except for quantization, where it is a value.
    values = {
        name: None if value in ("none", "null") and name != "quantization" else value
        for name, value in values.items()
    }
    # Find bundled files from any working directory; a user's file of that name takes precedence.
    for field in ("model", "train_file", "test_file"):
        if isinstance(values.get(field), str):
            values[field] = ",".join(
                str(ROOT / path) if path.startswith(SHIPPED) and not Path(path).exists() else path
                for path in values[field].split(",")
            )
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_problems(error, where, options))) from error


# Parts of pydantic's messages to drop: "Input should be a valid number, unable to parse string".
AROUND = re.compile(
    "^Value error, |^[A-Z][a-z]+ should (be|have) |^Unable to parse input string as "
    "|,? (unable|got|exceeded|after) .*"
)


def _problems(error: ValidationError, where: str, options: Collection[str]) -> Iterable[str]:
    expected: dict[str, list[str]] = {}  # several for a union of types
    got: dict[str, str] = {}
    for details in error.errors():
        message = AROUND.sub("", details["msg"])
        name = str(details["loc"][0]) if details["loc"] else ""
        if not name:  # options that cannot be combined
            is_of_options = any(re.search(rf"\b{option}\b", message) for option in options)
            yield message if is_of_options else f"{where}: {message}"
        elif name not in Recipe.model_fields:
            yield f"{where}: unknown key {name!r}.{did_you_mean(name, Recipe.model_fields)}"
        else:
            expected.setdefault(name, []).append(message)
            # reprlib: nested YAML aliases have a repr of 700 MB.
            got.setdefault(name, reprlib.repr(details["input"]))
    for name, messages in expected.items():
        source = f"--{name}" if name in options else f"{where}: {name}"
        yield (
            f"{source}: got {got[name]}, expected {' or '.join(dict.fromkeys(messages))} "
            f"({Recipe.model_fields[name].description})"
        )
