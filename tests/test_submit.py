"""Test tools.submit: what is packed, what is refused, and that the zip answers as the run does.

The zip is unpacked into an empty folder and run without the project, a hub's cache or a network.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import fine_tune
import inference
from dandap.errors import InputError
from dandap.files import read_json, write_json
from dandap.runs.folder import RunFolder
from tools import submit

# A connection ends the process: an exception could be caught, and the attempt go unseen.
BLOCKER = """
import os, socket

def refuse(*_):
    os.write(2, b"a connection was tried")
    os._exit(97)

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Make a run of one step on the demo's data that has answered its first eight questions."""
    folder = tmp_path_factory.mktemp("trained")
    lines = Path("data/sample/train.csv").read_text(encoding="utf-8-sig")
    (folder / "train.csv").write_text(lines[:6000].rpartition("\nTRAIN")[0] + "\n", "utf-8")
    options = ["--recipe", "demo", "--train_file", str(folder / "train.csv"), "--run_name", "run"]
    options += ["--output_dir", str(folder), "--validation_fraction", "0"]
    fine_tune.main([*options, "--max_new_tokens", "8"])
    inference.main(["--run", str(folder / "run"), "--limit", "8"])
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """Return a copy of the run."""
    shutil.copytree(trained / "run", tmp_path / "outputs" / "run")
    return RunFolder(tmp_path / "outputs" / "run")


def pack(run, *more):
    return submit.main([run.path.name, "--output_dir", str(run.path.parent), *more])


def change_recipe(run, **fields):
    recipe = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8"))
    run.recipe_file.write_text(yaml.safe_dump(recipe | fields), encoding="utf-8")


def start(tmp_path, *command):
    """Run a command as the organiser does: a folder, a Python, and no network."""
    (tmp_path / "blocker").mkdir()
    (tmp_path / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    home = tmp_path / "home"
    home.mkdir()
    empty = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=empty | {"PYTHONPATH": str(tmp_path / "blocker")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_the_zip_answers_as_the_run_does(run, tmp_path):
    """The organiser's data lie in data/, and its sample decides the form of the submission."""
    shutil.copyfile("data/sample/test.csv", tmp_path / "test.csv")
    lines = (tmp_path / "test.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "test.csv").write_text(lines[:9000].rpartition("\nTEST")[0] + "\n", "utf-8")
    expected = inference.main(["--run", str(run.path), "--test_file", str(tmp_path / "test.csv")])
    change_recipe(run, test_file=str(tmp_path / "test.csv"))
    archive = pack(run)

    server = tmp_path / "server"
    with zipfile.ZipFile(archive) as packed:
        assert {name.split("/")[0] for name in packed.namelist()} == {
            "model",
            "script.py",
            "requirements.txt",
        }
        packed.extractall(server)
    (server / "data").mkdir()
    shutil.copyfile(tmp_path / "test.csv", server / "data" / "test.csv")
    ended = start(tmp_path, str(server / "script.py"))
    assert ended.returncode == 0, ended.stderr
    written = (server / "output" / "submission.csv").read_bytes()
    assert written == Path(expected["submission"]).read_bytes()
    assert expected["questions"] > 10
    assert "WARNING" not in ended.stdout, "base and template are those of the run"
    assert not list((server / "model" / "run").glob("answers*")), "answers lie in output/ alone"


def test_the_network_is_blocked_in_these_tests(tmp_path):
    ended = start(tmp_path, "-c", "import urllib.request as u; u.urlopen('http://x.y')")
    assert (ended.returncode, ended.stderr) == (97, "a connection was tried")


def test_what_is_packed_tells_nothing_of_this_machine(run, tmp_path):
    change_recipe(run, test_file=str(tmp_path / "test.csv"))
    with zipfile.ZipFile(pack(run)) as packed:
        names = packed.namelist()
        texts = [packed.read(name) for name in names if not name.endswith(".safetensors")]
        requirements = packed.read("requirements.txt")
    assert not any(str(tmp_path).encode() in text for text in texts)
    assert not [name for name in names if "__pycache__" in name or "checkpoint-" in name]
    assert requirements == Path("requirements.txt").read_bytes()
    assert {"model/code/LICENSE", "model/code/tasks/economic_qa.py"} <= set(names)


def test_minutes_are_checked_by_what_answering_took(run, capsys):
    (noted,) = run.answers.glob("*/scores.json")
    scores = read_json(noted)
    assert scores["timing"]["questions"] == 8
    write_json(noted, scores | {"timing": {"loading": 30.0, "answering": 4.0, "questions": 8}})
    with pytest.raises(
        InputError, match=r"241 questions take about 2\.5 minutes: 30\.0 s .*0\.500"
    ):
        pack(run, "--minutes", "2", "--questions", "241")
    pack(run, "--minutes", "2", "--questions", "180")
    pack(run)
    assert "265 questions take about 2.7 minutes" in capsys.readouterr().out, "the run's test file"
    # Eight samples take another time than one.
    eight = ("--samples", "8", "--temperature", "1")
    with pytest.raises(InputError, match="holds no answers that say how long"):
        pack(run, "--minutes", "2", *eight)
    pack(run, *eight)
    assert "no estimate of the time" in capsys.readouterr().out
    # Neither what answered nothing anew, nor vLLM, which no submission answers with.
    for other in ({"timing": scores["timing"] | {"questions": 0}}, {"engine": "vllm"}):
        write_json(noted, scores | other)
        with pytest.raises(InputError, match="holds no answers that say how long"):
            pack(run, "--minutes", "2")


def test_questions_that_cannot_be_counted_are_not_guessed(run):
    change_recipe(run, test_file="nowhere.csv")
    with pytest.raises(InputError, match=r"no file at nowhere\.csv.*--questions"):
        pack(run, "--minutes", "9")
    assert pack(run, "--minutes", "9", "--questions", "10").is_file()


def test_options_of_answering_and_places_are_packed(run):
    more = ("--grounded", "true", "--test_file", "in/q.json", "--output", "out/a.csv")
    archive = pack(run, *more)
    recipe = RunFolder(archive.parent / "model" / "run").load_recipe()
    assert (recipe.grounded, recipe.model, recipe.output_dir) == (True, "model/base", "outputs")
    script = (archive.parent / "script.py").read_text(encoding="utf-8")
    assert "'in/q.json'" in script
    assert "'out/a.csv'" in script
    assert "trust_remote_code" not in script


def test_code_of_a_repository_must_be_allowed_by_the_command(run):
    change_recipe(run, trust_remote_code=True)
    with pytest.raises(InputError, match="add --trust_remote_code true"):
        pack(run)
    archive = pack(run, "--trust_remote_code", "true")
    script = (archive.parent / "script.py").read_text(encoding="utf-8")
    assert '["--trust_remote_code", "true"]' in script


def test_a_cached_base_is_packed_at_the_commit_it_was_trained_on(run, tmp_path, monkeypatch):
    """The hub's cache holds links to blobs, and a newer commit beside the one of the run."""
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
    base = pack(run).parent / "model" / "base"
    assert sorted(path.name for path in base.iterdir()) == ["config.json", "model.safetensors"]
    assert (base / "model.safetensors").read_text() == "trained on model.safetensors"
    assert not (base / "model.safetensors").is_symlink()

    run.update_environment(base={"model": "some/base", "commit": "c" * 40})
    with pytest.raises(InputError, match="not in the hub's cache .*hf download some/base"):
        pack(run)


def test_another_base_than_trained_on_is_refused(run):
    run.update_environment(base={"model": "data/demo_model", "files": "0" * 64})
    with pytest.raises(InputError, match="not the one that .* was trained on"):
        pack(run)


def test_a_damaged_adapter_is_refused(run):
    weights = bytearray(run.weights.read_bytes())
    weights[-1] ^= 1
    run.weights.write_bytes(weights)
    with pytest.raises(InputError, match="SHA-256 differs"):
        pack(run)
    run.weights.unlink()
    with pytest.raises(InputError, match="holds no adapter"):
        pack(run)


def test_the_files_of_a_model_are_taken_once(tmp_path):
    for name in (
        "config.json model-1.safetensors model-2.safetensors consolidated.safetensors README.md "
        "pytorch_model.bin original/model.safetensors onnx/config.json .cache/x.json "
        "1_Pooling/config.json 2_Dense/model.safetensors"
    ).split():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    write_json(
        tmp_path / "model.safetensors.index.json",
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}},
    )
    found = [path.relative_to(tmp_path).as_posix() for path in submit.files_of(tmp_path)]
    assert found == [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
    ]
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks weights: expected .*model-2\.safetensors"):
        submit.files_of(tmp_path)


def test_the_embedding_model_of_wallpaper_qa_goes_along(run, tmp_path):
    embedder = tmp_path / "embedder"
    (embedder / "2_Dense").mkdir(parents=True)
    for name in ("modules.json", "model.safetensors", "2_Dense/model.safetensors"):
        (embedder / name).write_text("{}")
    fields = {"task": "wallpaper_qa", "template": "wallpaper_bare"}
    change_recipe(run, **fields, embedding_model=str(embedder))
    archive = pack(run)
    packed = archive.parent / "model"
    recipe = RunFolder(packed / "run").load_recipe()
    assert recipe.embedding_model == "model/embedding_model"
    assert (packed / "embedding_model" / "2_Dense" / "model.safetensors").is_file()
    lines = (archive.parent / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("sentence-transformers==") for line in lines)
    assert not any(line.startswith("-r") for line in lines)


def test_dialogues_are_submitted_as_json(run):
    change_recipe(run, task="dialogue_inference", template="dialogue", test_file="x/test.json")
    script = (pack(run).parent / "script.py").read_text(encoding="utf-8")
    assert "'data/test.json'" in script
    assert "'output/submission.json'" in script


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(run, monkeypatch):
    usage = shutil.disk_usage(run.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"need 1\d\.\d MB, and .* has 0\.0 MB free"):
        pack(run)
    assert not list(run.path.parent.glob("submit-*"))
