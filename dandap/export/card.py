"""The model card of an export: what it is, its scores, how it is asked, what it was made of."""

from pathlib import Path

import yaml
from httpx2 import HTTPError  # what huggingface_hub speaks HTTP with
from huggingface_hub import hf_hub_download
from huggingface_hub.repocard import metadata_load
from jinja2 import Environment, StrictUndefined

from dandap.errors import first_line
from dandap.files import read_json_lines, write_text
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from dandap.runs.predictions import own_answers

CARD = Path(__file__).with_name("card.md.jinja")
PATHS = ("model", "train_file", "test_file")  # of a recipe; a card tells their names alone
HERE = ("output_dir", "run_name")  # what says nothing about the model
WHICH = {"validation": "validation questions", "training": "first training questions"}

CHAT = """\
prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")"""
PLAIN = """\
ids = tokenizer(prompt, return_tensors="pt")"""
TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
{encode}
said = model.generate(**ids)[0, ids["input_ids"].shape[1]:]
print(tokenizer.decode(said, skip_special_tokens=True).strip())
```

`vllm serve {place}` serves it; ask with a temperature of 0."""
PEFT = """\
```python
from peft import AutoPeftModelForCausalLM
from transformers import BitsAndBytesConfig
{quantization}
model = AutoPeftModelForCausalLM.from_pretrained("{place}", dtype="{dtype}"{more})
```"""
# On the base as it is, three of the demo's 265 test answers were others.
NF4 = """
nf4 = BitsAndBytesConfig(  # as it was trained; on the base as it is some answers differ
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant={double},
    bnb_4bit_compute_dtype="{dtype}",
)"""
LLAMA_CPP = """\
`ollama create {title} -f Modelfile`, then ask with the article as the system message and the
question as the prompt: the Modelfile adds the wording. A prompt without a system message is sent as
it stands, between the marks of turns.

`llama-server -m {gguf} --jinja` serves it; ask with a temperature of 0. `llama-quantize {gguf}
small.gguf Q4_K_M` makes it smaller; its answers then differ."""


def write_card(folder: Path, run: RunFolder, recipe: Recipe, noted: dict, task) -> None:
    """Write README.md of an export; `noted` is what export.json says, `task` one of tasks/."""
    template_name, template = run.load_template()
    environment = run.environment()
    packages = environment.get("packages", {})
    rows, metric = score_rows(run, noted, task)
    named_base = base_name(recipe) + (f", revision {recipe.revision}" if recipe.revision else "")
    licence = base_licence(recipe)
    page = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    text = page.from_string(CARD.read_text(encoding="utf-8")).render(
        front_matter=front_matter(recipe, noted, licence),
        title=noted["title"],
        about=about(recipe, noted),
        headline=[task.label(name) for name in task.headline],
        scores=rows,
        metric=metric,
        judged=judged(noted, task),
        wording=template_name,
        template=template,
        is_chat="prompt" not in template,
        stops=[f"`{text}`" for text in noted["stops"].values()],
        recipe=recipe,
        decoding=decoding(run, recipe),
        usage=usage(recipe, noted, "prompt" not in template),
        base=named_base,
        licence=licence.get("license_name") or licence.get("license") or "not found; look it up",
        data={Path(name).name: digest for name, digest in environment.get("data", {}).items()},
        differences=yaml.safe_dump(public(recipe), allow_unicode=True, sort_keys=False),
        where=f"on {environment['gpu']}" if environment.get("gpu") else "on a CPU",
        packages=", ".join(f"{name} {number}" for name, number in packages.items()),
    )
    write_text(folder / "README.md", text)


def front_matter(recipe: Recipe, noted: dict, licence: dict) -> str:
    """Return the card's YAML, by which the hub files it."""
    fields = {
        "language": ["ko"],
        **licence,
        "pipeline_tag": "text-generation",
        "library_name": {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}[noted["to"]],
        "tags": ["dandap", "qlora", "question-answering"],
    }
    # A folder of this machine is no model of the hub.
    if not Path(recipe.model).is_dir():
        relation = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}
        fields |= {"base_model": recipe.model, "base_model_relation": relation[noted["to"]]}
    return yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)


def base_name(recipe: Recipe) -> str:
    """Return the base's name, of a folder without its path."""
    return Path(recipe.model).resolve().name if Path(recipe.model).is_dir() else recipe.model


def base_licence(recipe: Recipe) -> dict[str, str]:
    """Return the licence that the base's own card names, or {} where it has none or none is had."""
    try:
        card = (
            Path(recipe.model) / "README.md"
            if Path(recipe.model).is_dir()
            else Path(hf_hub_download(recipe.model, "README.md", revision=recipe.revision))
        )
        fields = metadata_load(card) or {}
    except (OSError, ValueError, HTTPError, yaml.YAMLError) as error:
        print(
            f"WARNING: the licence of {recipe.model} was not found ({first_line(error)}): look it "
            "up, and put it into README.md, before you pass the model on"
        )
        return {}
    names = ("license", "license_name", "license_link")
    return {name: str(fields[name]) for name in names if fields.get(name)}


def public(recipe: Recipe) -> dict:
    """Return what the recipe changes of the defaults, without paths of this machine."""
    fields = {name: value for name, value in recipe.differences().items() if name not in HERE}
    for name in PATHS:
        if name in fields and (Path(fields[name]).exists() or name != "model"):
            # Several files have commas between them.
            parts = fields[name].split(",")
            fields[name] = ",".join(Path(part.strip()).name for part in parts)
    return fields


def about(recipe: Recipe, noted: dict) -> str:
    """Return what the export is, in a paragraph."""
    base, task = base_name(recipe), recipe.task
    how = "4-bit QLoRA" if recipe.quantization == "nf4" else "LoRA"
    if noted["to"] == "adapter":
        told = f"An adapter for {base}, trained by Dandap with {how} for {task}."
        if "lm_head" not in recipe.lora_target_modules:
            return told
        return (
            f"{told} It adapts the LM head: where the base ties that to the embeddings, untie it "
            "before merging, or the embeddings change as well."
        )
    into = ", whose NF4 weights were dequantised first" if recipe.quantization == "nf4" else ""
    lines = [
        f"{base}, fine-tuned by Dandap with {how} for {task}. The adapter is merged into the "
        f"base{into}, in {noted['dtype']}."
    ]
    if noted["to"] == "gguf":
        lines.append("This is its GGUF, for llama.cpp and Ollama.")
    if noted["untied"]:
        lines.append(
            "Its LM head was trained and is no longer that of the embeddings "
            "(tie_word_embeddings is false)."
        )
    return " ".join(lines)


def score_rows(run: RunFolder, noted: dict, task) -> tuple[list[list[str]], str]:
    """Return the table of scores, and the metric that they are of."""
    validation = noted["validation"]
    before, after = validation["before"], validation["after"]
    what = WHICH[validation["which"]]
    found = [(f"{what}, as trained", before)] if before else []
    if after:
        made_of = "the merged weights" if noted["to"] == "gguf" else "this model"
        found.append((f"{what}, {made_of}", after))
    found += [(f"{name}, as trained", scores) for name, scores in test_scores(run).items()]
    rows = []
    for name, scores in found:
        cells = [name]
        for score in task.headline:
            low, high = scores[f"{score}_interval"]
            cells.append(f"{scores[score]:.4f} ({low:.4f} to {high:.4f})")
        rows.append([*cells, str(scores["questions"])])
    return rows, found[0][1]["metric"] if found else "Nothing was scored"


def test_scores(run: RunFolder) -> dict[str, dict]:
    """Return the scores of the run's newest own answers to each test file."""
    newest = {
        Path(next(iter(noted["data"]))).stem: noted["scores"]
        for _, noted in own_answers(run)
        if noted.get("scores")
    }
    return dict(sorted(newest.items()))


def judged(noted: dict, task) -> str:
    """Return what the comparison of the answers before and after came to, in a paragraph."""
    validation = noted["validation"]
    if not validation["after"]:
        return ""
    low, high = validation["interval"]
    lines = [
        f"\n\n{validation['same']} of {validation['questions']} answers are the same as before the "
        f"export; {task.label(task.headline[0])} differs by {validation['difference']:+.4f} (95% "
        f"{low:+.4f} to {high:+.4f}, question by question)."
    ]
    if validation["which"] == "training":
        lines.append("It was trained on these questions: they tell that the export is whole.")
    if noted["to"] == "gguf":
        lines.append("llama.cpp's own answers were not scored.")
    return " ".join(lines)


def decoding(run: RunFolder, recipe: Recipe) -> str:
    """Return how the run takes its answers, and what of it other programs do not do."""
    drawn = f"Tokens are drawn at temperature {recipe.temperature}."
    said = drawn if recipe.temperature else "The likeliest token is taken (temperature 0)."
    # A question's own choices are no part of the recipe; what was answered tells of them.
    chosen = recipe.choices or any("choices" in r for r in read_json_lines(run.validation_record))
    asked = {"grounded": recipe.grounded, "choices": chosen, "samples": recipe.samples > 1}
    ways = [name for name, is_asked in asked.items() if is_asked]
    if not ways:
        return said
    return f"{said} The scores are of answering with {', '.join(ways)}, which only Dandap does."


def usage(recipe: Recipe, noted: dict, is_chat: bool) -> str:
    """Return how other programs load and ask it."""
    place, dtype = noted["place"], noted["dtype"]
    if noted["to"] == "merged":
        return TRANSFORMERS.format(place=place, encode=CHAT if is_chat else PLAIN)
    if noted["to"] == "gguf":
        return LLAMA_CPP.format(title=noted["title"].lower(), gguf=noted["gguf"])
    is_nf4 = recipe.quantization == "nf4"
    nf4 = NF4.format(double=recipe.double_quantization, dtype=dtype) if is_nf4 else ""
    more = ", quantization_config=nf4" if is_nf4 else ""
    text = PEFT.format(place=place, dtype=dtype, quantization=nf4, more=more)
    return text if is_nf4 else text.replace("from transformers import BitsAndBytesConfig\n", "")
