"""Export a run as a model that others load: transformers, vLLM, llama.cpp, Ollama, PEFT.

run -> validation answered -> adapter merged into its base -> validation answered again -> a folder

python export.py                                 the newest finished run, as merged weights
python export.py outputs/demo-... --to gguf      one file for llama.cpp, with an Ollama Modelfile
python export.py demo-... --to adapter           the adapter, whose base PEFT finds from any folder
python export.py demo-... --push_to_hub NAME     also into a private repository of the hub

The base is dequantised before the adapter is merged into it, and the export answers as the run did.
One that loses more of the score than chance explains is refused, and nothing is left of it.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import inference
import prompts
from dandap.cli import Parser, add_options, chosen_options, parse, run_script
from dandap.data.encode import Encoder
from dandap.data.rows import Answers, Table, split_by_article
from dandap.errors import InputError
from dandap.files import check_writable, read_json, read_json_lines, whole_folder, write_json
from dandap.manifest import folder_hash
from dandap.model.distributed import refuse_several
from dandap.recipe import Recipe, make_recipe
from dandap.runs.folder import RunFolder
from tasks import get_task

RECORD = "export.json"  # what an export is and how it answered; by it a folder is known as one
MOST_TRAINING = 100  # questions that are answered where the run held none out
OPTIONS = ("train_file", "compute_dtype", "trust_remote_code")


@dataclass(frozen=True)
class Answering:
    """Holds how a model answered, with what others need in order to answer alike."""

    answered: Answers
    stops: dict[int, str]  # id -> text
    generation: dict  # what generation_config.json says


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the result that its last line prints as JSON."""
    arguments = parse(command_line(), argv)
    refuse_several("export.py")
    source = choose(arguments)
    parent = Path(arguments.exports_dir or source.run.path / "exports")
    check_writable(parent, "Name another with --exports_dir.")

    # These load torch, which takes 10 s: not before the command line is understood.
    from dandap.export.gguf import find_converter
    from dandap.export.upload import sign_in, upload

    # What can be refused without the model is refused before it is loaded.
    refuse_upload(arguments, source.recipe)
    converter = find_converter() if arguments.to == "gguf" else []
    name = sign_in(arguments.push_to_hub) if arguments.push_to_hub else None
    folder = parent / arguments.to
    if not is_there(folder, source, taken=bool(name)):
        if arguments.to == "merged":
            export_merged(source, folder, name)
        elif arguments.to == "gguf":
            export_gguf(source, folder, name, converter)
        else:
            export_adapter(source, folder, name)
    address = upload(folder, name) if name else None
    result = {"folder": str(folder), "hub": address}
    print(json.dumps(result, ensure_ascii=False))
    return result


def command_line() -> Parser:
    """Return the options: which run becomes what, and where it goes."""
    parser = Parser(__doc__)
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="name or path (default: the newest finished run)"
    )
    parser.add_argument(
        "--to",
        choices=["merged", "gguf", "adapter"],
        default="merged",
        help="merged: whole weights in the run's number format; gguf: these as one file of "
        "llama.cpp, whose converter must be there; adapter: for PEFT (default: merged)",
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="NAME",
        help="also put it into a repository of the hub, NAME or OWNER/NAME; a new one is private",
    )
    parser.add_argument(
        "--exports_dir",
        metavar="DIR",
        help="where the export's folder goes (default: exports/ in the run's folder)",
    )
    parser.add_argument(
        "--output_dir", metavar="DIR", default="outputs", help="where runs are (default: outputs)"
    )
    add_options(parser, "over the run's recipe", OPTIONS)
    # What inference.choose asks of its own command line; an export has no choice there.
    parser.set_defaults(no_adapter=False, recipe=None, template=None)
    return parser


def choose(arguments: argparse.Namespace) -> inference.Source:
    """Return the finished run to export, with the command line's options over its recipe."""
    source = inference.with_options(inference.choose(arguments), arguments)
    chosen = chosen_options(arguments)
    options = {name: value for name, value in chosen.items() if name in OPTIONS}
    recipe = make_recipe(source.recipe.model_dump() | options, str(source.run.path), options)

    from dandap.export.weights import with_dtype  # with torch

    recipe = with_dtype(recipe, source.run)
    return replace(source, recipe=recipe)


def refuse_upload(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse to publish an adapter whose base nobody else has."""
    if arguments.push_to_hub and arguments.to == "adapter" and Path(recipe.model).is_dir():
        raise InputError(
            f"the base {recipe.model} is a folder of this machine, which an adapter on the hub "
            "could only name by its path. Push merged weights: --to merged."
        )


def is_there(folder: Path, source: inference.Source, taken: bool) -> bool:
    """Say whether the export was made before; `taken` says that it may then be used as it is.

    InputError is raised for a folder that is something else, or that nothing would be done with.
    """
    if not folder.exists() and not folder.is_symlink():
        return False
    way_out = "Remove it, or name another --exports_dir."
    if not (folder / RECORD).is_file():
        raise InputError(f"{folder} exists and is no export. {way_out}")
    record = read_json(folder / RECORD)
    if record.get("adapter") != folder_hash(source.run.adapter):
        raise InputError(f"{folder} is an export of another adapter. {way_out}")
    if record.get("dtype") != source.recipe.compute_dtype:
        raise InputError(
            f"{folder} is an export in {record.get('dtype')}, and {source.recipe.compute_dtype} is "
            f"asked for. {way_out}"
        )
    if not taken:
        raise InputError(f"{folder} exists already. {way_out}")
    print(f"{folder} was made before and is used as it is")
    return True


def export_merged(source: inference.Source, folder: Path, name: str | None) -> None:
    """Write the merged model, with its card, once its answers have proved to be the run's."""
    from dandap.export.card import write_card
    from dandap.export.weights import as_base, check_room, write_merged

    recipe, run, task = source.recipe, source.run, get_task(source.recipe.task)
    questions, which = read_questions(recipe, run)
    check_room(recipe, folder)
    before = ask(source, questions, "as trained")
    with whole_folder(folder) as partial:
        untied = write_merged(recipe, run, partial, before.generation)
        exported = replace(source, run=None, recipe=as_base(recipe, partial))
        after = ask(exported, questions, "exported")
        validation = {"which": which} | judge(task, before.answered, after.answered)
        noted = note(source, "merged", name) | {
            "untied": untied,
            "stops": before.stops,
            "validation": validation,
        }
        write_json(partial / RECORD, noted)
        write_card(partial, run, recipe, noted, task)
    print(f"merged: {folder}, in {recipe.compute_dtype}")
    if untied:
        print("the LM head has an adapter, and now weights of its own beside the embeddings")


def export_gguf(
    source: inference.Source, folder: Path, name: str | None, converter: list[str]
) -> None:
    """Convert the merged model beside it, which is made where there is none, into one file.

    With it go an Ollama Modelfile and a card.
    """
    from dandap.export.card import write_card
    from dandap.export.gguf import OUTTYPES, convert, marked, prompt_texts, write_modelfile
    from dandap.model.load import load_tokenizer

    recipe, task = source.recipe, get_task(source.recipe.task)
    merged = folder.with_name("merged")
    if not is_there(merged, source, taken=True):
        export_merged(source, merged, None)
    before = read_json(merged / RECORD)
    dtype = before["dtype"]
    file = f"{source.run.path.resolve().name}-{OUTTYPES[dtype]}.gguf"
    encoder = Encoder(load_tokenizer(recipe, merged), source.template, task.sample)
    texts = prompt_texts(encoder, source.template, worded(source.template, marked(task.sample)))
    with whole_folder(folder) as partial:
        convert(converter, merged, partial / file, dtype)
        write_modelfile(partial, file, recipe, texts, list(before["stops"].values()))
        noted = before | note(source, "gguf", name) | {"dtype": dtype, "gguf": file}
        write_json(partial / RECORD, noted)
        write_card(partial, source.run, recipe, noted, task)
    print(f"GGUF: {folder / file}, with a Modelfile for Ollama beside it")


def worded(template: prompts.Template, row) -> prompts.Template | None:
    """Return the template filled with a row's article and question; None if it has other fields."""
    try:
        return prompts.render(template, {"context": row.context, "question": row.question})
    except KeyError:
        return None


def export_adapter(source: inference.Source, folder: Path, name: str | None) -> None:
    """Write the adapter so that PEFT loads it from any folder, with its tokenizer and a card."""
    from dandap.export.card import write_card
    from dandap.export.weights import write_adapter

    run, task = source.run, get_task(source.recipe.task)
    # Its weights are the run's, byte for byte, so that its scores are those of the training.
    scores = None
    for line in read_json_lines(run.metrics_file):
        scores = line.get("validation", scores)
    with whole_folder(folder) as partial:
        write_adapter(source.recipe, run, partial)
        noted = note(source, "adapter", name) | {
            "untied": False,
            "stops": stops_of(source),
            "validation": {"which": "validation", "before": scores, "after": None},
        }
        write_json(partial / RECORD, noted)
        write_card(partial, run, source.recipe, noted, task)
    print(f"adapter: {folder}")


def note(source: inference.Source, to: str, name: str | None) -> dict:
    """Return what export.json says of any export; `name` is its repository on the hub."""
    title = source.run.path.resolve().name
    return {
        "to": to,
        "title": name.split("/")[-1] if name else title,
        "place": name or to,
        "run": title,
        "adapter": folder_hash(source.run.adapter),
        "dtype": source.recipe.compute_dtype,
    }


def stops_of(source: inference.Source) -> dict[int, str]:
    """Return the tokens that end an answer of the run's template, by their ids."""
    from dandap.model.load import load_tokenizer

    tokenizer = load_tokenizer(source.recipe, source.run.adapter)
    encoder = Encoder(tokenizer, source.template, get_task(source.recipe.task).sample)
    return {stop: tokenizer.convert_ids_to_tokens(stop) for stop in encoder.stop_ids()}


def read_questions(recipe: Recipe, run: RunFolder) -> tuple[inference.Questions, str]:
    """Return the run's validation questions, or its first training ones; and which they are."""
    table = get_task(recipe.task).read_train(recipe)
    if table.sha256 not in run.environment().get("data", {}).values():
        print(f"WARNING: {table.path} is not the file that {run.path} was trained on")
    _, rows = split_by_article(table.rows, recipe.validation_fraction, recipe.fold)
    which = "validation" if rows else "training"
    rows = rows or table.rows[:MOST_TRAINING]
    print(f"{len(rows):,} {which} questions are answered before and after")
    if which == "training":
        print("the run held none out: they tell that the export is whole, not how good it is")
    return inference.Questions(Table(table.path, rows, table.sha256, []), rows, None), which


def ask(source: inference.Source, questions: inference.Questions, doing: str) -> Answering:
    """Answer the questions as inference does, by the run or by an exported model alone."""
    from dandap.training.validation import Validation

    from dandap.answering.run import open_model
    from dandap.model.device import free_memory

    recipe, task = source.recipe, get_task(source.recipe.task)
    model = open_model(recipe, source.template, source.run)
    encoder, decoding = model.answerer.encoder, model.answerer.decoding
    examples = inference.encode(recipe, encoder, questions)
    model.check(examples)
    answered = Validation(task, model.answerer, examples).answered(examples, doing)
    tokenizer = encoder.tokenizer
    generation = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": decoding.stop_ids,
        "pad_token_id": decoding.pad_id,
        "max_new_tokens": decoding.max_new_tokens,
        "num_beams": decoding.beams,
        "repetition_penalty": decoding.repetition_penalty,
        # The base's may draw by default, and vLLM would follow it.
        "do_sample": decoding.temperature > 0,
    }
    if decoding.temperature > 0:
        generation["temperature"] = decoding.temperature
    stops = {stop: tokenizer.convert_ids_to_tokens(stop) for stop in decoding.stop_ids}
    # The next model needs the memory of this one, which its wrappers hold in circles.
    del model
    free_memory()
    return Answering(answered, stops, generation)


def judge(task, before: Answers, after: Answers) -> dict:
    """Return both scores and their difference; InputError for a loss that is more than chance."""
    rows, ours = task.answerable(after)
    _, theirs = task.answerable(before)
    compared = task.compare(
        task.each(rows, ours), task.each(rows, theirs), [row.article for row in rows]
    )
    same = sum(a == b for a, b in zip(before.predictions, after.predictions, strict=True))
    score, (low, high) = task.label(task.headline[0]), compared["interval"]
    told = (
        f"{same:,} of {len(after.rows):,} answers are the same, {score} differs by "
        f"{compared['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})"
    )
    if high < 0:
        raise InputError(
            f"the exported model answers worse than the run, and nothing is left of it: {told}. "
            "Try --compute_dtype float32, or export the adapter alone (--to adapter)."
        )
    print(told)
    return {
        "questions": len(after.rows),
        "same": same,
        **compared,
        "before": task.scores_of(before),
        "after": task.scores_of(after),
    }


if __name__ == "__main__":
    run_script(main)
