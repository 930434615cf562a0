"""Write the model card of an export: scores, usage, base, data and recipe."""

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

LIBRARIES = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}
# Recipe fields with local paths; the card lists base and data separately.
PRIVATE = {"model", "train_file", "test_file", "init_adapter", "output_dir", "run_name"}


def write_card(folder: Path, source: Source, run: RunFolder, record: dict[str, Any]) -> None:
    """Write the README.md of an export; `record` is its export.json."""
    recipe, task = source.recipe, get_task(source.recipe.task)
    validation, environment = record["validation"], run.environment()
    scores = {f"{validation['which']} questions, as trained": validation["before"]}
    scores[f"{validation['which']} questions, merged"] = validation["after"]
    for _, answered in own_answers(run):  # the newest is last
        if answered.get("scores"):
            name = Path(next(iter(answered["data"]))).stem
            scores[f"{name}, as trained"] = answered["scores"]
    is_local = Path(recipe.model).is_dir()  # a folder's path is private
    fields = {name: value for name, value in recipe.differences().items() if name not in PRIVATE}
    parts = render(source.template, task.sample_fields())
    asked = [{"role": role, "content": parts[role]} for role in ("system", "user") if role in parts]
    card = ModelCard.from_template(
        ModelCardData(
            language="ko",
            pipeline_tag="text-generation",
            library_name=LIBRARIES[record["to"]],
            tags=["dandap", "qlora", "question-answering"],
            base_model=None if is_local else recipe.model,
            **base_license(recipe),
        ),
        template_path=str(Path(__file__).with_name("card.md.jinja")),
        record=record,
        recipe=recipe,
        template=source.template,
        asked=json.dumps(asked or parts["prompt"], ensure_ascii=False),  # also valid Python
        headline=task.headline,
        labels=[label(name) for name in task.headline],
        scores={name: found for name, found in scores.items() if found},
        base=Path(recipe.model).resolve().name if is_local else recipe.model,
        fields=yaml.safe_dump(fields, allow_unicode=True, sort_keys=False),
        environment=environment,
        data={Path(name).name: digest for name, digest in environment.get("data", {}).items()},
    )
    card.save(folder / "README.md")


def base_license(recipe: Recipe) -> dict[str, Any]:
    """Return the license fields of the base's model card, if any."""
    try:
        card = Path(recipe.model, "README.md")
        fields = ModelCard.load(card if card.parent.is_dir() else recipe.model).data.to_dict()
    except (OSError, ValueError, HTTPError, yaml.YAMLError) as error:
        print(f"WARNING: the license of {recipe.model} was not found ({first_line(error)})")
        return {}
    return {name: str(text) for name, text in fields.items() if name.startswith("license")}
