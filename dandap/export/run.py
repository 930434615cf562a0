"""Export a finished run as a folder that other programs load.

from dandap.export.run import export

folder = export("demo-20261130-180000", "merged")
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers import GenerationConfig

import metrics
from dandap.answering.run import OpenModel, Source, find_source, open_model
from dandap.data.encode import Encoder
from dandap.data.rows import Answers, split_by_article
from dandap.errors import InputError, first_line
from dandap.export.card import write_card
from dandap.export.gguf import find_converter, write_gguf
from dandap.files import (
    MANIFEST,
    check_writable,
    folder_hash,
    read_json,
    read_json_lines,
    whole_folder,
    write_json,
)
from dandap.model.adapter import check_whole, for_answering, load_adapter
from dandap.model.dequantize import check_space, load_plain, plain_weights
from dandap.model.device import free_memory, pick_device
from dandap.model.load import load_config, load_tokenizer
from dandap.model.memory import make_plan
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import RunFolder
from tasks import get_task
from tasks.scoring import answerable, compute_scores, label
from tasks.task import Task, read_train

RECORD = "export.json"  # marks a folder as an export, and says how it answered
MAX_TRAINING = 100  # questions answered for a run without validation questions


def export(
    run: str | None = None,
    to: Literal["merged", "gguf", "adapter"] = "merged",
    *,
    repository: str | None = None,
    exports_dir: str | None = None,
    output_dir: str = "outputs",
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Export a finished run (the newest without a name) and return the new folder.

    With `repository`, the name on the hub that the card shows, an earlier export is returned as it
    is. `options` are over the run's recipe.
    """
    source = find_source(run, output_dir, options=options)
    assert source.run
    trained, recipe = source.run, with_dtype(source.recipe, source.run)
    source = Source(trained, recipe, source.template)
    if repository and to == "adapter" and Path(recipe.model).is_dir():
        raise InputError(
            f"the base {recipe.model} is a folder of this machine, which nobody else has. Push "
            "merged weights: --to merged."
        )
    folder = Path(exports_dir or trained.path / "exports") / to
    check_writable(folder.parent, "Name another with --exports_dir.")
    converter = find_converter() if to == "gguf" else []
    name = trained.path.resolve().name
    record = {
        "to": to,
        "title": repository.split("/")[-1] if repository else name,
        "place": repository or to,
        "run": name,
        "adapter": folder_hash(trained.adapter),
        "dtype": recipe.compute_dtype,
    }
    if is_exported(folder, record, reuse=bool(repository)):
        return folder
    merged = folder.with_name("merged")
    if to == "gguf" and not is_exported(merged, record, reuse=True):
        export(str(trained.path), exports_dir=str(folder.parent), options=options)
    with whole_folder(folder) as partial:
        if to == "merged":
            record |= _export_merged(source, trained, partial)
        elif to == "gguf":
            record = read_json(merged / RECORD) | record
            tokenizer, sample = load_tokenizer(recipe, merged), get_task(recipe.task).sample
            encoder = Encoder(tokenizer, source.template, sample)
            record["gguf"] = write_gguf(partial, merged, converter, recipe, encoder, record)
        else:
            record |= _export_adapter(source, trained, partial)
        write_json(partial / RECORD, record)
        write_card(partial, source, trained, record)
    print(f"{to}: {folder}")
    return folder


def with_dtype(recipe: Recipe, run: RunFolder) -> Recipe:
    """Return the recipe with the number format that the run was computed in."""
    if recipe.compute_dtype != "auto":
        return recipe
    environment = run.environment()
    # Earlier versions did not record it.
    dtype = environment.get("compute_dtype") or (
        "bfloat16" if environment.get("gpu") else "float32"
    )
    return make_recipe(recipe.model_dump() | {"compute_dtype": dtype}, "environment.json")


def is_exported(folder: Path, record: dict[str, Any], reuse: bool) -> bool:
    """Return whether the folder is an earlier export of the same adapter that may be reused."""
    if not folder.exists() and not folder.is_symlink():
        return False
    found = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    is_same = all(found.get(name) == record[name] for name in ("adapter", "dtype"))
    if not is_same or not reuse:
        what = "exists already" if is_same else "is something else, or of another adapter or dtype"
        raise InputError(f"{folder} {what}. Remove it, or name another --exports_dir.")
    print(f"reusing {folder}")
    return True


def _export_merged(source: Source, run: RunFolder, folder: Path) -> dict[str, Any]:
    """Write the merged model; return what export.json says of how it and the run answer."""
    recipe, task = source.recipe, get_task(source.recipe.task)
    table = read_train(task, recipe)
    if table.sha256 not in run.environment().get("data", {}).values():
        print(f"WARNING: {table.path} is not the file that {run.path} was trained on")
    _, rows = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    which = "validation" if rows else "training"
    rows = rows or table.rows[:MAX_TRAINING]
    print(f"answering {len(rows):,} {which} questions before and after")
    way_out = "name another --exports_dir, or export the adapter alone (--to adapter)"
    check_space(recipe, folder, "the merged model", way_out)
    as_base = {"model": str(folder), "revision": None, "quantization": "none"}
    exported = make_recipe(recipe.model_dump() | as_base, "the exported model")
    make_plan(exported, load_config(recipe), pick_device(), training=False)  # it may not fit

    model = open_model(source)
    before = model.predict_all(model.encode(rows), "as trained")
    generation, tokenizer = generation_config(model), model.encoder.tokenizer
    del model
    free_memory()
    untied = merge(recipe, run, folder, generation)
    model = open_model(Source(None, exported, source.template))
    after = model.predict_all(model.encode(rows), "exported")
    stops = generation.eos_token_id
    return {
        "untied": untied,
        "stops": dict(zip(stops, tokenizer.convert_ids_to_tokens(stops), strict=True)),
        "validation": {"which": which} | compare(task, before, after),
    }


def generation_config(model: OpenModel) -> GenerationConfig:
    """Return the settings with which others generate as the run does."""
    decoding = model.answerer.decoding
    # The base's default may be to sample, and vLLM would follow it.
    sampling = {"do_sample": True, "temperature": decoding.temperature}
    return GenerationConfig(
        bos_token_id=model.encoder.tokenizer.bos_token_id,
        eos_token_id=decoding.stop_ids,
        pad_token_id=decoding.pad_id,
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        repetition_penalty=decoding.repetition_penalty,
        **(sampling if decoding.temperature else {"do_sample": False}),
    )


def merge(recipe: Recipe, run: RunFolder, folder: Path, generation: GenerationConfig) -> bool:
    """Write the dequantized base with the run's adapter merged into it, and the run's tokenizer.

    Return whether the LM head was untied from the embeddings, because it has an adapter.
    """
    model = load_plain(recipe)
    was_tied = model.config.get_text_config().tie_word_embeddings
    merged = for_answering(load_adapter(model, run.adapter), merged=True)
    merged.generation_config = generation
    try:
        merged.save_pretrained(str(folder), state_dict=plain_weights(merged))
    except SafetensorError as error:  # not an OSError, also for a full disk
        reason = f"{folder} could not be written ({first_line(error)})"
        raise InputError(f"{reason}. Free some space, or name another --exports_dir.") from error
    unwanted = shutil.ignore_patterns("adapter_*", MANIFEST)
    shutil.copytree(run.adapter, folder, ignore=unwanted, dirs_exist_ok=True)
    return was_tied and not merged.config.get_text_config().tie_word_embeddings


def compare(task: Task, before: Answers, after: Answers) -> dict[str, Any]:
    """Return both scores and their difference; InputError if it is a loss beyond chance."""
    rows, ours = answerable(after)
    theirs = answerable(before)[1]
    compared = metrics.compare(
        task.score_each(rows, ours), task.score_each(rows, theirs), [row.article for row in rows]
    )
    same = sum(a == b for a, b in zip(before.predictions, after.predictions, strict=True))
    low, high = compared["interval"]
    summary = (
        f"{same:,} of {len(after.rows):,} answers are the same, {label(task.headline[0])} differs "
        f"by {compared['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})"
    )
    if high < 0:
        raise InputError(
            f"the exported model answers worse than the run and was removed: {summary}. "
            "Try --compute_dtype float32, or export the adapter alone (--to adapter)."
        )
    print(summary)
    scores = {"before": compute_scores(task, before), "after": compute_scores(task, after)}
    return {"questions": len(after.rows), "same": same, **compared, **scores}


def _export_adapter(source: Source, run: RunFolder, folder: Path) -> dict[str, Any]:
    """Write the adapter for PEFT; its weights, and so its scores, are those of training."""
    recipe = source.recipe
    check_whole(run.adapter)
    unwanted = shutil.ignore_patterns(MANIFEST)
    shutil.copytree(run.adapter, folder, ignore=unwanted, dirs_exist_ok=True)
    # The run's own names a local base without its path, which a published run should not show.
    base = str(Path(recipe.model).resolve()) if Path(recipe.model).is_dir() else recipe.model
    file = folder / "adapter_config.json"
    named = {"base_model_name_or_path": base, "revision": recipe.revision}
    write_json(file, read_json(file) | named)
    scores = None
    for line in read_json_lines(run.metrics_file):
        scores = line.get("validation", scores)
    tokenizer = load_tokenizer(recipe, run.adapter)
    stops = Encoder(tokenizer, source.template, get_task(recipe.task).sample).stop_ids()
    return {
        "untied": False,
        "stops": dict(zip(stops, tokenizer.convert_ids_to_tokens(stops), strict=True)),
        "validation": {"which": "validation", "before": scores, "after": None},
    }
