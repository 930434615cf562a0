"""Export a finished run for other programs, and upload it to the hub."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from httpx2 import HTTPError  # huggingface_hub's HTTP client
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import GenerationConfig

import metrics
from dandap.answering.run import Source, find_source, open_model
from dandap.data.encode import Encoder
from dandap.data.rows import Answers, split_by_article
from dandap.errors import InputError, first_line
from dandap.export.card import write_card
from dandap.export.gguf import find_converter, write_gguf
from dandap.files import (
    MANIFEST,
    atomic_folder,
    folder_hash,
    read_json,
    read_json_lines,
    write_json,
)
from dandap.model.adapter import for_answering, load_adapter, verify_adapter
from dandap.model.dequantize import check_space, dequantized_weights, load_dequantized
from dandap.model.device import free_memory, pick_device
from dandap.model.load import load_config, load_tokenizer
from dandap.model.memory import make_plan
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import RunFolder
from tasks import get_task
from tasks.task import Task, answerable, compute_scores, label, read_train

RECORD = "export.json"  # marks a folder as an export


def export(
    run: str | None = None,
    to: Literal["merged", "gguf", "adapter"] = "merged",
    *,
    repository: str | None = None,
    exports_dir: str | None = None,
    output_dir: str = "outputs",
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Export a finished run, by default the newest, and return the folder.

    An existing export of the same adapter is returned. `repository` is the hub name in the card;
    `options` override the run's recipe.
    """
    source = find_source(run, output_dir, options=options)
    assert source.run
    trained, recipe = source.run, source.recipe
    if recipe.compute_dtype == "auto":  # use the run's; old runs have no record
        environment = trained.environment()
        default = "bfloat16" if environment.get("gpu") else "float32"
        dtype = {"compute_dtype": environment.get("compute_dtype", default)}
        recipe = make_recipe(recipe.model_dump() | dtype, "environment.json")
        source = Source(trained, recipe, source.template)
    if repository and to == "adapter" and Path(recipe.model).is_dir():
        raise InputError(
            f"the base {recipe.model} is a local folder, so that others cannot load the adapter. "
            "Push merged weights: --to merged."
        )
    folder = Path(exports_dir or trained.path / "exports") / to
    converter = find_converter() if to == "gguf" else None
    name = trained.path.resolve().name
    same = {"adapter": folder_hash(trained.adapter), "dtype": recipe.compute_dtype}
    title = repository.split("/")[-1] if repository else name
    record: dict[str, Any] = {"to": to, "run": name, "title": title, "place": repository or to}
    record |= same
    if folder.exists() or folder.is_symlink():
        found = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        if not same.items() <= found.items():
            raise InputError(
                f"{folder} is not an export of this adapter and dtype. Remove it, or choose "
                "another --exports_dir."
            )
        print(f"{folder} is an export of this adapter. Remove it to export again.")
        return folder
    verify_adapter(trained.adapter)
    if to == "merged":
        check_space(recipe, folder, "the merged model", "or export --to adapter")
    tokenizer = load_tokenizer(recipe, trained.adapter)
    encoder = Encoder(tokenizer, source.template, get_task(recipe.task).sample)
    if converter:
        merged = export(str(trained.path), exports_dir=str(folder.parent), options=options)
        record = read_json(merged / RECORD) | record
    with atomic_folder(folder) as partial:
        if converter:
            record["gguf"] = write_gguf(partial, merged, converter, encoder, recipe, record)
        else:
            write = _write_merged if to == "merged" else _write_adapter
            record["untied"], stops, record["validation"] = write(source, trained, encoder, partial)
            record["stops"] = dict(zip(stops, tokenizer.convert_ids_to_tokens(stops), strict=True))
        write_json(partial / RECORD, record)
        write_card(partial, source, trained, record)
    print(f"{to}: {folder}")
    return folder


def _write_merged(source: Source, run: RunFolder, encoder: Encoder, folder: Path) -> tuple:
    """Write the merged model; return (untied, stop ids, validation) for export.json."""
    recipe, task = source.recipe, get_task(source.recipe.task)
    table = read_train(task, recipe)
    if table.sha256 not in run.environment().get("data", {}).values():
        print(f"WARNING: {table.path} is not the file that {run.path} was trained on")
    _, rows = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    which = "validation" if rows else "training"
    rows = rows or table.rows[:100]
    print(f"answering {len(rows):,} {which} questions before and after the merge")
    as_base = {"model": str(folder), "revision": None, "quantization": "none"}
    exported = make_recipe(recipe.model_dump() | as_base, "the exported model")
    make_plan(exported, load_config(recipe), pick_device(), training=False)  # fail early

    model = open_model(source)
    before, decoding = model.predict_all(model.encode(rows), "as trained"), model.answerer.decoding
    del model
    free_memory()
    generation = GenerationConfig(
        bos_token_id=encoder.tokenizer.bos_token_id,
        eos_token_id=decoding.stop_ids,
        pad_token_id=decoding.pad_id,
        max_new_tokens=decoding.max_new_tokens,
        num_beams=decoding.beams,
        repetition_penalty=decoding.repetition_penalty,
        # The base's default may be sampling.
        do_sample=decoding.temperature > 0,
        temperature=decoding.temperature or None,
    )
    untied = merge(recipe, run, folder, generation)
    model = open_model(Source(None, exported, source.template))
    after = model.predict_all(model.encode(rows), "exported")
    return untied, decoding.stop_ids, {"which": which} | compare(task, before, after)


def _write_adapter(source: Source, run: RunFolder, encoder: Encoder, folder: Path) -> tuple:
    """Write the adapter for PEFT; return the same tuple as `_write_merged`."""
    recipe = source.recipe
    shutil.copytree(run.adapter, folder, dirs_exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    # The run's adapter has no local path.
    base = str(Path(recipe.model).resolve()) if Path(recipe.model).is_dir() else recipe.model
    file = folder / "adapter_config.json"
    named = {"base_model_name_or_path": base, "revision": recipe.revision}
    write_json(file, read_json(file) | named)
    scores = None
    for line in read_json_lines(run.metrics_file):
        scores = line.get("validation", scores)
    return False, encoder.stop_ids(), {"which": "validation", "before": scores, "after": None}


def merge(recipe: Recipe, run: RunFolder, folder: Path, generation: GenerationConfig) -> bool:
    """Write the dequantized base with the merged adapter, and the run's tokenizer.

    Return whether an adapted LM head was untied from the embeddings.
    """
    model = load_dequantized(recipe)
    was_tied = model.config.get_text_config().tie_word_embeddings
    merged = for_answering(load_adapter(model, run.adapter), merged=True)
    merged.generation_config = generation
    try:
        merged.save_pretrained(str(folder), state_dict=dequantized_weights(merged))
    except SafetensorError as error:  # a full disk
        reason = f"{folder} could not be written ({first_line(error)})"
        raise InputError(f"{reason}. Free some space, or choose another --exports_dir.") from error
    ignored = shutil.ignore_patterns("adapter_*", MANIFEST)
    shutil.copytree(run.adapter, folder, ignore=ignored, dirs_exist_ok=True)
    return was_tied and not merged.config.get_text_config().tie_word_embeddings


def compare(task: Task, before: Answers, after: Answers) -> dict[str, Any]:
    """Return both scores and their difference; raise InputError for a significant loss."""
    rows = answerable(after)[0]
    ours, theirs = (task.score_each(rows, answerable(each)[1]) for each in (after, before))
    compared = metrics.compare(ours, theirs, [row.article for row in rows])
    same = sum(a == b for a, b in zip(before.predictions, after.predictions, strict=True))
    low, high = compared["interval"]
    summary = (
        f"{same:,} of {len(after.rows):,} answers are equal, {label(task.headline[0])} changes by "
        f"{compared['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})"
    )
    if high < 0:
        raise InputError(
            f"the export scores lower than the run and was deleted: {summary}. Try "
            "--compute_dtype float32, or --to adapter."
        )
    print(summary)
    scores = {"before": compute_scores(task, before), "after": compute_scores(task, after)}
    return {"questions": len(after.rows), "same": same, **compared, **scores}


def sign_in(name: str) -> str:
    """Return the repository's full name; raise InputError for a bad name or token."""
    try:
        validate_repo_id(name)
        user = HfApi().whoami()["name"]
    except (HFValidationError, OSError, HTTPError) as error:
        # The error's text may contain the token.
        raise InputError(
            f"--push_to_hub: got {name[:200]!r} ({type(error).__name__}), expected NAME or "
            "OWNER/NAME, and a token with write access (`hf auth login`)."
        ) from error
    return name if "/" in name else f"{user}/{name}"


def upload(folder: Path, name: str) -> str:
    """Upload a folder and return its address; a new repository is private."""
    try:
        address = HfApi().create_repo(name, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Dandap export")
    except (OSError, HTTPError) as error:
        reason = f"{folder} was not uploaded to {name} ({type(error).__name__})"
        raise InputError(f"{reason}. Run the command again.") from error
    return str(address)
