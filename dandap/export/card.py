"""Write the model card of an export: its scores, how to ask it, and what it was made of."""

import json
from pathlib import Path
from typing import Any

import yaml
from httpx2 import HTTPError  # huggingface_hub's HTTP client
from huggingface_hub import ModelCard, ModelCardData

from dandap.answering.run import Source
from dandap.errors import first_line
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder
from dandap.runs.predictions import own_answers
from prompts import render
from tasks import get_task
from tasks.task import label

TEMPLATE = Path(__file__).with_name("card.md.jinja")
# By kind of export: the library that loads it, and its relation to the base.
KINDS = {
    "merged": ("transformers", "finetune"),
    "adapter": ("peft", "adapter"),
    "gguf": ("gguf", "quantized"),
}


def write_card(folder: Path, source: Source, run: RunFolder, record: dict[str, Any]) -> None:
    """Write README.md of an export; `record` is its export.json."""
    recipe, task = source.recipe, get_task(source.recipe.task)
    validation, environment = record["validation"], run.environment()
    scores = {f"{validation['which']} questions, as trained": validation["before"]}
    if validation["after"]:
        scores[f"{validation['which']} questions, merged"] = validation["after"]
    for _, answered in own_answers(run):
        if answered.get("scores"):
            name = Path(next(iter(answered["data"]))).stem
            scores[f"{name}, as trained"] = answered["scores"]  # the newest is last
    library, relation = KINDS[record["to"]]
    data = ModelCardData(
        language="ko",
        pipeline_tag="text-generation",
        library_name=library,
        tags=["dandap", "qlora", "question-answering"],
        **base_license(recipe),
    )
    is_local = Path(recipe.model).is_dir()
    if not is_local:  # a folder's path is private
        data["base_model"], data["base_model_relation"] = recipe.model, relation
    parts = render(source.template, task.sample_fields())
    asked = [{"role": role, "content": parts[role]} for role in ("system", "user") if role in parts]
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        record=record,
        recipe=recipe,
        template=source.template,
        asked=json.dumps(asked or parts["prompt"], ensure_ascii=False),  # also valid Python
        headline=task.headline,
        labels=[label(name) for name in task.headline],
        scores={name: found for name, found in scores.items() if found},
        base=Path(recipe.model).resolve().name if is_local else recipe.model,
        fields=yaml.safe_dump(public_fields(recipe), allow_unicode=True, sort_keys=False),
        environment=environment,
        data={Path(name).name: digest for name, digest in environment.get("data", {}).items()},
    )
    card.save(folder / "README.md")


def base_license(recipe: Recipe) -> dict[str, Any]:
    """Return the license fields of the base's own card, if there are any."""
    try:
        card = Path(recipe.model, "README.md")
        fields = ModelCard.load(card if card.parent.is_dir() else recipe.model).data.to_dict()
    except (OSError, ValueError, HTTPError, yaml.YAMLError) as error:
        print(
            f"WARNING: the license of {recipe.model} was not found ({first_line(error)}). Add it "
            "to README.md before you publish the model"
        )
        return {}
    names = ("license", "license_name", "license_link")
    return {name: str(fields[name]) for name in names if fields.get(name)}


def public_fields(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe's differences from the defaults, without paths of this machine."""
    fields = recipe.differences()
    for name in ("output_dir", "run_name"):  # they say nothing about the model
        fields.pop(name, None)
    for name in ("model", "train_file", "test_file"):
        if name in fields and (name != "model" or Path(fields[name]).exists()):
            fields[name] = ",".join(Path(part.strip()).name for part in fields[name].split(","))
    return fields
