"""Make a code submission, as DACON asks for one: python -m tools.submit RUN --minutes 30

run + base model + this code -> submit.zip: script.py, requirements.txt, model/

The organiser's server installs requirements.txt and runs script.py, which reads data/test.csv and
writes output/submission.csv. It answers by inference.py, which lies in model/ with all that it
needs, so that its answers are those of `python inference.py --run RUN`. Nothing is fetched.
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import os
import shutil
import zipfile

from dandap import ROOT
from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.errors import InputError, first_line, short_list
from dandap.files import (
    check_writable,
    existing_parent,
    make_folder,
    new_folder,
    read_json,
    write_json,
    write_text,
)
from dandap.manifest import KINDS, fault
from dandap.recipe import ANSWERING, Recipe, make_recipe
from dandap.runs.folder import RunFolder, find_run
from tasks import get_task

# What inference.py imports of ours; what it is licensed under goes with it.
CODE = ("dandap", "tasks", "inference.py", "prompts.py", "metrics.py", "LICENSE")
# Folders of hub repositories that hold a model's weights once more, in other forms.
OTHER_FORMS = {"original", "onnx", "openvino"}

SCRIPT = '''"""Answer {test_file} with the run in model/, without network; write {output}."""

import os
import sys
import tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
os.chdir(here)  # the data and the models are named from here
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(here / "model" / "code"))

import inference

Path({output!r}).parent.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as answers:
    sys.argv[1:] = ["--run", "model/run", "--test_file", {test_file!r}, "--answers_dir", answers]
    sys.argv += ["--output", {output!r}, "--overwrite"]{more}
    inference.run_script(inference.main)
'''


def main(argv: list[str] | None = None) -> Path:
    """Run the command line; return the path of submit.zip."""
    arguments = parse(command_line(), argv)
    run = find_run(arguments.run, arguments.output_dir)
    recipe = choose_recipe(run, arguments)
    check_time(run, recipe, arguments)
    check_writable(Path(arguments.output_dir), "Name another --output_dir.")
    base = run.environment().get("base", {})
    models = {"model": find_model(recipe.model, recipe.revision or base.get("commit"))}
    for field in get_task(recipe.task).models:
        models[field] = find_model(getattr(recipe, field), None)
    check_base(run, recipe, models["model"])
    needed = 2 * sum(size_of(files_of(folder)) for folder in models.values())
    check_space(Path(arguments.output_dir), needed)

    folder = new_folder(arguments.output_dir, f"submit-{run.path.resolve().name}")
    pack_code(folder, recipe, arguments)
    for field, source in models.items():
        copy_model(source, folder / place_of(field))
    pack_run(run, recipe, models, folder)
    tell_sizes(folder)
    return make_zip(folder)


def command_line() -> Parser:
    """Return the options: which run, for which time limit, and how it answers."""
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="the run whose adapter answers")
    parser.add_argument(
        "--minutes", metavar="M", type=positive, help="refuse what would answer longer than this"
    )
    parser.add_argument(
        "--questions",
        metavar="N",
        type=positive,
        help="how many questions the organiser asks (default: as many as the run's test file)",
    )
    parser.add_argument(
        "--test_file",
        metavar="FILE",
        help="where the organiser puts the questions (default: data/ and the name of the run's)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the organiser looks for answers (default: output/submission.csv; .json for "
        "dialogues)",
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="where runs are and the folder goes (default: outputs)",
    )
    add_options(parser, "how answers come about (over the run's recipe)", ANSWERING)
    return parser


def choose_recipe(run: RunFolder, arguments: argparse.Namespace) -> Recipe:
    """Return the run's recipe with the command line's ways of answering, checked as for answering.

    An unfinished run, a damaged adapter and unconfirmed remote code are refused.
    """
    from dandap.model.hub import (
        confirm_remote_code,
    )  # with the hub's library, for which --help waits

    recipe = run.load_recipe()
    if not run.weights.is_file():
        raise InputError(
            f"{run.path} holds no adapter: its training has not finished, or it is a zero-shot "
            "run. Name a trained run."
        )
    run.check_finished()
    # Adapters of earlier versions have no manifest.
    if (run.adapter / "manifest.json").is_file() and (why := fault(run.adapter)):
        raise InputError(f"{run.adapter} cannot be used: {why}. Put it back from a copy.")
    options = {
        name: value for name, value in chosen_options(arguments).items() if name in ANSWERING
    }
    recipe = make_recipe(recipe.model_dump() | options, str(run.path), options)
    confirm_remote_code(recipe, "trust_remote_code" in options)
    return recipe


def check_time(run: RunFolder, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Print how long the answers will take by what the run's own took; refuse beyond --minutes."""
    noted = find_timing(run, recipe)
    if not noted:
        told = f"{run.path} holds no answers that say how long they took, answered as these will be"
        if arguments.minutes:
            raise InputError(
                f"{told}: python inference.py --run {run.path}, with the same options, on a "
                "machine like the organiser's; then start this again."
            )
        print(f"no estimate of the time: {told}")
        return
    timing, questions = noted["timing"], arguments.questions or count_questions(recipe)
    if not questions and arguments.minutes:
        raise InputError(
            f"there is no file at {recipe.test_file}, by which the questions would be counted. Say "
            "how many there are with --questions."
        )
    each = timing["answering"] / timing["questions"]
    measured = (
        f"{timing['loading']:.1f} s to load the model and {each:.3f} s a question, as measured on "
        f"{timing['questions']:,} questions on {noted.get('gpu') or 'a CPU'}"
    )
    seconds = timing["loading"] + each * questions
    told = f"{questions:,} questions take about {seconds / 60:.1f} minutes: {measured}"
    if arguments.minutes and seconds > arguments.minutes * 60:
        raise InputError(
            f"{told}; --minutes allows {arguments.minutes}. Choose a smaller base, fewer --samples "
            "or a smaller --max_new_tokens."
        )
    print(f"{told if questions else measured}; Python's own start and another machine come on top")


def find_timing(run: RunFolder, recipe: Recipe) -> dict | None:
    """Return the scores.json of the run's largest timed inference that answered as the recipe does.

    None is returned where there is none.
    """
    found = []
    for file in sorted(run.answers.glob("*/scores.json")):
        noted = read_json(file)
        answered = noted.get("recipe") or {}
        alike = all(answered.get(name) == getattr(recipe, name) for name in ANSWERING)
        alike &= noted.get("engine", "ours") == "ours"  # which is what a submission answers with
        # An inference that found all its answers in the folder timed none.
        if alike and (noted.get("timing") or {}).get("questions"):
            found.append(noted)
    return max(found, key=lambda noted: noted["timing"]["questions"], default=None)


def count_questions(recipe: Recipe) -> int:
    """Return how many questions the recipe's test file has; 0 where there is no such file."""
    test_file = Path(recipe.test_file)
    if not test_file.exists():
        return 0
    return len(get_task(recipe.task).read_test(recipe, test_file).rows)


def find_model(name: str, revision: str | None) -> Path:
    """Return the folder of a model: its own, or that of the hub's cache. Nothing is fetched."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # 1 s, which a folder need not wait for

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the model {name!r} is no folder and not in the hub's cache ({first_line(error)}). "
            f"Fetch it first: hf download {name}"
        ) from error


def check_base(run: RunFolder, recipe: Recipe, folder: Path) -> None:
    """Refuse another base than the run was trained on; its answers would be others."""
    from dandap.model.identity import base_identity, same_base

    trained_on = run.environment().get("base")
    today = base_identity(recipe)
    if trained_on and not same_base(trained_on, today) and trained_on.get("commit") != folder.name:
        raise InputError(
            f"the base {recipe.model} is not the one that {run.path} was trained on (then "
            f"{trained_on}, now {today}). Put that one back."
        )


def files_of(folder: Path) -> list[Path]:
    """Return the files of a model's folder that loading it needs; weights as safetensors, once."""
    found = []
    for path in sorted(folder.rglob("*")):
        above = path.relative_to(folder).parts[:-1]
        odd = OTHER_FORMS & set(above) or any(part.startswith(".") for part in above)
        if path.is_file() and path.suffix in KINDS and not odd:
            found.append(path)
    weights = {path.name for path in found if path.parent == folder and path.suffix == KINDS[1]}
    index = folder / "model.safetensors.index.json"
    listed = set(read_json(index)["weight_map"].values()) if index.is_file() else weights
    if not listed <= weights or not listed:
        raise InputError(
            f"{folder} lacks weights: expected {short_list(sorted(listed)) or '.safetensors files'}"
            ". Fetch or copy the model again; .bin files are not read."
        )
    # Some repositories have the weights in one file beside the shards of the index.
    return [path for path in found if path.parent != folder or path.name not in weights - listed]


def size_of(paths: list[Path]) -> int:
    """Return how many bytes files have."""
    return sum(path.stat().st_size for path in paths)


def check_space(parent: Path, needed: int) -> None:
    """Refuse to begin where the disk has no room for the models and the zip of them."""
    parent = existing_parent(parent)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"the folder and submit.zip need {size_text(needed)}, and {parent} has "
            f"{size_text(free)} free. Free some, or name another disk with --output_dir."
        )


def size_text(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def pack_code(folder: Path, recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Write script.py, requirements.txt and model/code."""
    task = get_task(recipe.task)
    test_file = arguments.test_file or f"data/{Path(recipe.test_file).name}"
    output = arguments.output or f"output/{task.submission}"
    remote = '\n    sys.argv += ["--trust_remote_code", "true"]' if recipe.trust_remote_code else ""
    write_text(folder / "script.py", SCRIPT.format(test_file=test_file, output=output, more=remote))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if task.models:
        extra = (ROOT / "requirements-extra.txt").read_text(encoding="utf-8").splitlines()
        lines += [line for line in extra if not line.startswith("-r")]
    write_text(folder / "requirements.txt", "\n".join(lines) + "\n")
    code = folder / "model" / "code"
    make_folder(code)
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, code / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, code / name)


def place_of(field: str) -> str:
    """Return where in the zip the model lies that a field of the recipe names."""
    return "model/base" if field == "model" else f"model/{field}"


def copy_model(source: Path, target: Path) -> None:
    """Copy what loading a model needs; what the hub's cache links to is copied as files."""
    for path in files_of(source):
        copy = target / path.relative_to(source)
        make_folder(copy.parent)
        shutil.copyfile(path, copy)


def pack_run(run: RunFolder, recipe: Recipe, models: dict[str, Path], folder: Path) -> None:
    """Write model/run: adapter, template, and a recipe that names the models in the zip.

    Paths and what else tells of this machine stay here.
    """
    from dandap.model.identity import base_identity

    packed = RunFolder(folder / "model" / "run")
    shutil.copytree(run.adapter, packed.adapter)
    own = ("train_file", "test_file", "output_dir", "run_name", "revision")
    fresh = {name: Recipe.model_fields[name].default for name in own}
    inside = {field: place_of(field) for field in models}
    at_home = recipe.model_copy(update={"model": str(folder / inside["model"])})
    base = base_identity(at_home) | {"model": inside["model"]}
    finished = {name: run.time(name) for name in ("started", "finished")}
    write_json(packed.environment_file, {"base": base, "run": run.run_id, **finished})
    packed.save_recipe(recipe.model_copy(update=fresh | inside), run.load_template()[1])


def tell_sizes(folder: Path) -> None:
    """Print how large the parts of the submission are."""
    for part in sorted((folder / "model").iterdir()):
        size = size_of([path for path in part.rglob("*") if path.is_file()])
        print(f"model/{part.name}: {size_text(size)}")


def make_zip(folder: Path) -> Path:
    """Write submit.zip into the folder, of all else in it; read it back, and return its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    partial = folder / ".submit.zip.partial"
    with zipfile.ZipFile(partial, "w") as archive:
        for path in files:
            # Weights do not shrink, and would take minutes a gigabyte.
            stored = path.suffix == ".safetensors"
            how = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            archive.write(path, path.relative_to(folder), how)
    with zipfile.ZipFile(partial) as archive:
        damaged = archive.testzip()
    if damaged:
        raise RuntimeError(f"{partial} reads back differently from what was written: {damaged}")
    target = folder / "submit.zip"
    os.replace(partial, target)
    print(f"submission: {target} ({size_text(target.stat().st_size)}, read back and checked)")
    return target


if __name__ == "__main__":
    run_script(main)
