"""Make a code submission for DACON: python -m tools.submit RUN

run + base model + this code -> submit.zip: script.py, requirements.txt, model/

The server installs requirements.txt and runs script.py, which answers data/test.csv and writes
output/submission.csv like `python inference.py --run RUN`, without downloads.
"""

import zipfile
from pathlib import Path

from dandap import ROOT
from dandap.cli import Parser, add_options, chosen_options, parse, run_script
from dandap.errors import InputError, short_list
from dandap.files import KINDS, atomic_folder, read_json, timestamp, write_json, write_text
from dandap.recipe import ANSWERING, Recipe
from dandap.runs.folder import RunFolder
from tasks import get_task

CODE = ("dandap/**/*.*", "tasks/*.*", "prompts.py", "metrics.py", "LICENSE")
# Packages that answering does not need.
NOT_NEEDED = ("trl",)
# Folders in hub repositories with the same weights in other formats, and download caches.
OTHER_FORMATS = {"original", "onnx", "openvino", ".cache", ".git"}

SCRIPT = '''"""Answer the test file with the run in model/run, without network."""

import os
import sys
import tempfile
from pathlib import Path

here = Path(__file__).resolve().parent
os.chdir(here)  # all paths are relative to this folder
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(here / "model" / "code"))

import dandap.cli
from dandap.answering.run import answer, find_source

if __name__ == "__main__":
    output = Path({output!a})
    output.parent.mkdir(parents=True, exist_ok=True)
    source = find_source("model/run", options={options!a})
    with tempfile.TemporaryDirectory() as folder:
        answer(source, {test_file!a}, answers_dir=folder, output=str(output), overwrite=True)
'''


def submit(
    run: str,
    options: dict[str, str],
    output_dir: str = "outputs",
    test_file: str | None = None,
    output: str | None = None,
) -> Path:
    """Pack a run into submit.zip and return its path; `options` override its recipe."""
    from dandap.answering.run import find_source  # loads torch
    from dandap.model.adapter import verify_adapter
    from dandap.model.hub import base_identity, same_base

    source = find_source(run, output_dir, options=options)
    trained, recipe, task = source.run, source.recipe, get_task(source.recipe.task)
    verify_adapter(trained.adapter)
    base = trained.environment().get("base", {})
    revision = recipe.revision or base.get("commit")
    now = base_identity(recipe.model_copy(update={"revision": revision}))
    if base and not same_base(base, now):
        raise InputError(f"got the base {now}, expected {base} as in training. Restore that base.")
    places = {"model": "model/base"} | {field: f"model/{field}" for field in task.models}
    models = model_files(recipe.model, revision, places["model"])
    for field in task.models:
        models |= model_files(getattr(recipe, field), None, places[field])

    target = Path(output_dir) / f"submit-{trained.path.resolve().name}-{timestamp()}"
    with atomic_folder(target) as folder:
        script = SCRIPT.format(
            test_file=test_file or f"data/{Path(recipe.test_file).name}",
            output=output or f"output/{task.submission}",
            options={"trust_remote_code": True} if recipe.trust_remote_code else {},
        )
        write_text(folder / "script.py", script)
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines(True)
        lines = [line for line in lines if not line.startswith(NOT_NEEDED)]
        if task.models:
            extra = (ROOT / "requirements-extra.txt").read_text(encoding="utf-8").splitlines(True)
            lines += [line for line in extra if line.startswith("sentence-")]
        write_text(folder / "requirements.txt", "".join(lines))
        packed = RunFolder(folder / "model" / "run")
        packed.path.mkdir(parents=True)
        write_json(packed.environment_file, {"run": trained.run_id})
        # Without local paths.
        own = "train_file test_file init_adapter output_dir run_name revision".split()
        fields = {name: Recipe.model_fields[name].default for name in own} | places
        packed.save_recipe(recipe.model_copy(update=fields), source.template)

        small = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        for path in trained.adapter.iterdir():
            small[Path("model/run/adapter") / path.name] = path
        for path in [path for pattern in CODE for path in ROOT.glob(pattern)]:
            if path.suffix != ".pyc":
                small["model/code" / path.relative_to(ROOT)] = path
        with zipfile.ZipFile(folder / "submit.zip", "w") as archive:
            for name, path in sorted((small | models).items()):
                # Weights do not compress, and take minutes per GB.
                level = zipfile.ZIP_STORED if path.suffix == KINDS[1] else zipfile.ZIP_DEFLATED
                archive.write(path, name, level)
        with zipfile.ZipFile(folder / "submit.zip") as archive:
            if damaged := archive.testzip():
                raise RuntimeError(f"submit.zip is damaged: {damaged}")
    path = target / "submit.zip"
    print(f"submission: {path} ({path.stat().st_size / 1e6:,.1f} MB, read back and checked)")
    return path


def model_files(name: str, revision: str | None, place: str) -> dict[Path, Path]:
    """Return a model's files by their paths in the zip, each weight once."""
    from huggingface_hub import snapshot_download

    from dandap.model.hub import loading

    folder = Path(name)
    if not folder.is_dir():
        with loading(name, "model"):
            folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    found = [path.relative_to(folder) for path in folder.rglob("[!.]*") if path.suffix in KINDS]
    found = [name for name in found if OTHER_FORMATS.isdisjoint(name.parts)]
    weights = {str(name) for name in found if name.suffix == KINDS[1] and len(name.parts) == 1}
    index = folder / "model.safetensors.index.json"
    listed = set(read_json(index)["weight_map"].values()) if index.is_file() else weights
    if listed - weights or not listed:
        names = short_list(sorted(listed - weights) or ["all .safetensors files"])
        raise InputError(f"{folder} lacks {names}. Download the model again.")
    # Some repositories also have all weights in one file next to the shards.
    return {place / name: folder / name for name in found if str(name) not in weights - listed}


def main(argv: list[str] | None = None) -> Path:
    """Parse the arguments, run, and return the path of submit.zip."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="the trained run")
    add("--test_file", metavar="FILE", help="on the server (default: the run's, in data/)")
    add("--output", metavar="FILE", help="on the server (default: output/submission.csv or .json)")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    add_options(parser, "generation (overrides the run's recipe)", ANSWERING)
    arguments = parse(parser, argv)
    options = {name: v for name, v in chosen_options(arguments).items() if name in ANSWERING}
    names = ("run", "output_dir", "test_file", "output")
    return submit(options=options, **{name: getattr(arguments, name) for name in names})


if __name__ == "__main__":
    run_script(main)
