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
from dandap.runs.predictions import own_answers
from prompts import render
from tasks import get_task
from tasks.scoring import label

TEMPLATE = Path(__file__).with_name("card.md.jinja")
LIBRARIES = {"merged": "transformers", "adapter": "peft", "gguf": "gguf"}
RELATIONS = {"merged": "finetune", "adapter": "adapter", "gguf": "quantized"}


def write_card(folder: Path, source: Source, record: dict[str, Any]) -> None:
    """Write README.md of an export; `record` is its export.json."""
    recipe, task, environment = (
        source.recipe,
        get_task(source.recipe.task),
        source.run.environment(),
    )
    is_local, terms = Path(recipe.model).is_dir(), base_license(recipe)
    # A folder of this machine is no model of the hub, and its path is private.
    on_hub = {"base_model": recipe.model, "base_model_relation": RELATIONS[record["to"]]}
    card_data = ModelCardData(
        language="ko",
        pipeline_tag="text-generation",
        library_name=LIBRARIES[record["to"]],
        tags=["dandap", "qlora", "question-answering"],
        **({} if is_local else on_hub),
        **terms,
    )
    parts = render(source.template, task.sample_fields())
    asked = [{"role": role, "content": parts[role]} for role in ("system", "user") if role in parts]
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        record=record,
        recipe=recipe,
        template=source.template,
        asked=json.dumps(asked or parts["prompt"], ensure_ascii=False),  # also valid Python
        headline=[label(name) for name in task.headline],
        scores=score_rows(source, record),
        base=Path(recipe.model).resolve().name if is_local else recipe.model,
        terms=terms.get("license_name") or terms.get("license") or "not found; look it up",
        data={Path(name).name: digest for name, digest in environment.get("data", {}).items()},
        fields=yaml.safe_dump(public_fields(recipe), allow_unicode=True, sort_keys=False),
        environment=environment,
    )
    card.save(folder / "README.md")


def base_license(recipe: Recipe) -> dict[str, str]:
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


def score_rows(source: Source, record: dict[str, Any]) -> list[list[str]]:
    """Return the table of scores: validation before and after, and the run's newest test scores."""
    validation, headline = record["validation"], get_task(source.recipe.task).headline
    which = {"validation": "validation", "training": "first training"}[validation["which"]]
    found = {
        f"{which} questions, as trained": validation["before"],
        f"{which} questions, merged": validation["after"],
    }
    for _, answered in own_answers(source.run):
        name = Path(next(iter(answered["data"]))).stem
        found[f"{name}, as trained"] = answered.get("scores") or found.get(f"{name}, as trained")
    rows = []
    for name, scores in found.items():
        if scores:
            intervals = [(scores[score], *scores[f"{score}_interval"]) for score in headline]
            cells = [f"{score:.4f} ({low:.4f} to {high:.4f})" for score, low, high in intervals]
            rows.append([name, *cells, str(scores["questions"])])
    return rows
