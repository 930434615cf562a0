"""tools.submit: packed files, rejected inputs, and a zip with the answers of its run."""

import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import prompts
from dandap.errors import InputError
from dandap.files import write_json
from dandap.runs.folder import RunFolder
from tools import submit

# Exits on any connection, and hides packages that are not in the zip's requirements.txt.
SERVER = f"""
import importlib.machinery, importlib.metadata, os, socket

def refuse(*_):
    os.write(2, b"a connection was tried")
    os._exit(97)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

finder, version = importlib.machinery.PathFinder, importlib.metadata.version
find_spec = finder.find_spec

def find(name, *more):
    return None if name in {set(submit.NOT_NEEDED)} else find_spec(name, *more)

def version_of(name):
    if name in {set(submit.NOT_NEEDED)}:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

finder.find_spec, importlib.metadata.version = find, version_of
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train for a few steps and answer the first eight questions."""
    import fine_tune
    from dandap.answering.run import answer, find_source

    folder = tmp_path_factory.mktemp("trained")
    text = Path("data/sample/train.csv").read_text(encoding="utf-8-sig")
    (folder / "train.csv").write_text(text[:6000].rpartition("\nTRAIN")[0] + "\n", "utf-8")
    options = ["--recipe", "demo", "--train_file", str(folder / "train.csv"), "--run_name", "run"]
    options += ["--output_dir", str(folder), "--validation_fraction", "0"]
    fine_tune.main([*options, "--max_new_tokens", "8"])
    answer(find_source(str(folder / "run")), limit=8)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    shutil.copytree(trained / "run", tmp_path / "outputs" / "run")
    numbers = itertools.count()
    monkeypatch.setattr(submit, "timestamp", lambda: str(next(numbers)))
    return RunFolder(tmp_path / "outputs" / "run")


def pack(run, *more):
    return submit.main([run.path.name, "--output_dir", str(run.path.parent), *more])


def change_recipe(run, **fields):
    recipe = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8"))
    run.recipe_file.write_text(yaml.safe_dump(recipe | fields), encoding="utf-8")
    if name := fields.get("template"):
        write_json(run.template_file, {"name": name, "template": prompts.TEMPLATES[name]})


def start(tmp_path, *command):
    """Run Python as an organizer does: offline, in another folder, with required packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SERVER)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(tmp_path / "site")
    arguments = [sys.executable, *command]
    return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)


def test_the_zip_gives_the_answers_of_its_run(run, tmp_path):
    """The test file's name contains code, which must not run."""
    from dandap.answering.run import answer, find_source

    test_file = tmp_path / 'a""";open("RAN","w");""".csv'
    text = Path("data/sample/test.csv").read_text(encoding="utf-8-sig")
    test_file.write_text(text[:9000].rpartition("\nTEST")[0] + "\n", "utf-8")
    expected = answer(find_source(str(run.path)), str(test_file))
    change_recipe(run, test_file=str(test_file), train_file=str(tmp_path / "secret.csv"))
    server = tmp_path / "server"
    with zipfile.ZipFile(pack(run)) as packed:
        names = packed.namelist()
        texts = [packed.read(name) for name in names if not name.endswith(".safetensors")]
        packed.extractall(server)
    assert {name.split("/")[0] for name in names} == {"model", "script.py", "requirements.txt"}
    assert not [name for name in names if "__pycache__" in name or "checkpoint-" in name]
    assert {"model/code/LICENSE", "model/code/tasks/economic_qa.py"} <= set(names)
    assert not any(str(tmp_path).encode() in text for text in texts), "no trace of this machine"

    (server / "data").mkdir()
    shutil.copyfile(test_file, server / "data" / test_file.name)
    completed = start(tmp_path, str(server / "script.py"))
    assert completed.returncode == 0, completed.stderr
    written = (server / "output" / "submission.csv").read_bytes()
    assert written == expected.submission.read_bytes()
    assert not list(tmp_path.rglob("RAN"))


def test_options_and_paths_are_packed(run):
    more = ("--grounded", "true", "--test_file", r"C:\Users\q.json", "--output", "out/a.csv")
    archive = pack(run, *more)
    recipe = RunFolder(archive.parent / "model" / "run").load_recipe()
    assert (recipe.grounded, recipe.model, recipe.output_dir) == (True, "model/base", "outputs")
    script = (archive.parent / "script.py").read_text(encoding="utf-8")
    compile(script, "script.py", "exec")
    assert repr(r"C:\Users\q.json") in script
    assert "'out/a.csv'" in script
    assert "options={}" in script


def test_remote_code_must_be_allowed_by_the_command(run):
    change_recipe(run, trust_remote_code=True)
    with pytest.raises(InputError, match="add --trust_remote_code true"):
        pack(run)
    script = pack(run, "--trust_remote_code", "true").with_name("script.py")
    assert "{'trust_remote_code': True}" in script.read_text(encoding="utf-8")
    change_recipe(run, trust_remote_code=False, task="dialogue_inference", template="dialogue")
    script = pack(run).with_name("script.py").read_text(encoding="utf-8")
    assert "'output/submission.json'" in script


def test_a_cached_base_is_packed_at_the_commit_of_training(run, tmp_path, monkeypatch):
    """The hub's cache contains links to blobs, and a commit newer than the run's."""
    cache = tmp_path / "cache" / "models--some--base"
    for commit, text in (("a" * 40, "trained on"), ("b" * 40, "newer")):
        snapshot = cache / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (cache / "blobs").mkdir(exist_ok=True)
        for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            blob = cache / "blobs" / f"{commit}-{name}"
            blob.write_text(f"{text} {name}")
            (snapshot / name).symlink_to(blob)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    change_recipe(run, model="some/base")
    run.update_environment(base={"model": "some/base", "commit": "a" * 40})
    with zipfile.ZipFile(pack(run)) as packed:
        base = [name for name in packed.namelist() if name.startswith("model/base/")]
        assert base == ["model/base/config.json", "model/base/model.safetensors"]
        assert packed.read("model/base/model.safetensors") == b"trained on model.safetensors"


def test_a_changed_base_or_damaged_adapter_is_rejected(run):
    base = run.environment()["base"]
    run.update_environment(base={"model": "data/demo_model", "files": "0" * 64})
    with pytest.raises(InputError, match="as in training"):
        pack(run)
    run.update_environment(base=base)
    weights = bytearray(run.weights.read_bytes())
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    with pytest.raises(InputError, match="SHA-256 differs"):
        pack(run)
    assert not list(run.path.parent.glob("*submit*")), "nothing was written"


def test_weights_are_packed_in_one_format(tmp_path):
    wanted = "1_Pooling/config.json 2_Dense/model.safetensors config.json model-1.safetensors "
    wanted += "model-2.safetensors model.safetensors.index.json"
    others = "consolidated.safetensors README.md pytorch_model.bin original/model.safetensors "
    others += "onnx/config.json .cache/x.json"
    for name in f"{wanted} {others}".split():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": shards})
    found = submit.model_files(str(tmp_path), None, "m")
    assert sorted(map(str, found)) == [f"m/{name}" for name in wanted.split()]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks .model-2\.safetensors"):
        submit.model_files(str(tmp_path), None, "m")


def test_the_embedding_model_is_packed(run, tmp_path):
    embedder = tmp_path / "embedder"
    (embedder / "2_Dense").mkdir(parents=True)
    for name in ("modules.json", "model.safetensors", "2_Dense/model.safetensors"):
        (embedder / name).write_text("{}")
    fields = {"task": "wallpaper_qa", "template": "wallpaper_bare"}
    change_recipe(run, **fields, embedding_model=str(embedder))
    with zipfile.ZipFile(pack(run)) as packed:
        assert "model/embedding_model/2_Dense/model.safetensors" in packed.namelist()
        lines = packed.read("requirements.txt").decode()
        assert b"embedding_model: model/embedding_model" in packed.read("model/run/recipe.yaml")
    assert "\nsentence-transformers==" in lines
