"""notebooks/colab.ipynb, executed by Jupyter's client here, and in imitations of Colab and Kaggle.

Their folders are made elsewhere, and google.colab is a module that records its calls.
"""

import json
import re
import shutil
import sys

import pytest

from tests.conftest import ROOT, copy_project

nbformat = pytest.importorskip("nbformat", reason="pip install -r requirements-dev.txt")
nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-dev.txt")
pytest.importorskip("ipykernel", reason="pip install -r requirements-dev.txt")

NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
DRIVE = 'import pathlib\ndef mount(place):\n    pathlib.Path("drive-is-mounted").touch()\n'
FILES = 'import pathlib\ndef download(name):\n    pathlib.Path("downloaded").write_text(name)\n'
# Stands for fine_tune.py and inference.py: records its words, and makes a submission.
STUB = """
import pathlib, sys
name = pathlib.Path(sys.argv[0]).stem
with open("called", "a") as file:
    print(name, *sys.argv[1:], file=file)
answers = pathlib.Path("outputs/run/answers/test-1")
answers.mkdir(parents=True, exist_ok=True)
(answers / "submission.csv").touch()
"""


def execute(folder, **replaced):
    """Run the notebook in a folder, the paths of Colab and Kaggle replaced; return its output."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    for old, new in replaced.items():
        text = text.replace(f'"/{old}/', f'"{new.as_posix()}/')
    notebook = nbformat.reads(text, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


@pytest.fixture(autouse=True)
def _this_python(tmp_path, monkeypatch):
    """Give Jupyter a kernel on this Python alone, and folders of the test's own."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    settings = {"argv": words, "display_name": "this", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_it_is_clean_short_and_in_both_languages():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 40
            assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), "plain Python alone"
        else:
            _, korean, english = cell.source.split("\n\n")
            assert re.search("[가-힣]", korean)
            assert not re.search("[가-힣]", english)


@pytest.mark.slow
def test_it_trains_and_answers_the_demo_and_goes_on_after_a_cut(tmp_path):
    """The demo is a fifth of itself, so that this is quick; nothing else is played."""
    project = copy_project(tmp_path / "project")
    data = project / "data" / "sample" / "train.csv"
    lines = data.read_text(encoding="utf-8-sig")
    data.write_text(lines[: len(lines) // 5].rpartition("\nTRAIN")[0] + "\n", encoding="utf-8")
    said = execute(project / "notebooks")
    assert "adapter:" in said
    assert "265 answers in" in said
    (submission,) = project.glob("outputs/demo-*/answers/test-*/submission.csv")
    assert submission.relative_to(project).as_posix() in said.splitlines()[-1]

    # As if the machine had gone before the end: there is a checkpoint, and no adapter or report.
    (run,) = project.glob("outputs/demo-*")
    shutil.rmtree(run / "adapter")
    (run / "report.html").unlink()
    said = execute(project / "notebooks")
    assert "DEMO" not in said
    assert list(project.glob("outputs/demo-*")) == [run], "it was continued"
    assert (run / "report.html").is_file()


@pytest.fixture
def stubs(tmp_path):
    """Make a project whose scripts note how they are called."""
    project = tmp_path / "uploaded" / "dandap"
    (project / "data" / "sample").mkdir(parents=True)
    for name in ("fine_tune.py", "inference.py"):
        (project / name).write_text(STUB)
    (project / "requirements.txt").write_text("")
    (project / "data" / "sample" / "train.csv").touch()  # must not be taken for the user's
    return project


def test_on_colab_all_is_kept_on_the_drive(stubs, tmp_path, monkeypatch):
    (tmp_path / "fake" / "google" / "colab").mkdir(parents=True)
    for name, text in (("drive", DRIVE), ("files", FILES), ("__init__", "")):
        (tmp_path / "fake" / "google" / "colab" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    content = tmp_path / "content"
    drive = content / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    shutil.make_archive(str(drive / "dandap"), "zip", stubs.parent)
    said = execute(content, content=content, kaggle=tmp_path / "none")
    work = drive / "dandap-work"
    assert (content / "drive-is-mounted").is_file()
    assert (work / "called").read_text() == "fine_tune --recipe demo\ninference\n"
    assert (work / "downloaded").read_text() == "outputs/run/answers/test-1/submission.csv"
    assert f"project: {content / 'dandap' / 'dandap'}" in said, "unpacked beside the drive"

    # The next session: data were uploaded, a run was cut off.
    (work / "called").unlink()
    (work / "outputs" / "cut" / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    execute(content, content=content, kaggle=tmp_path / "none")
    assert (work / "called").read_text() == "fine_tune --resume\ninference\n"
    (work / "outputs" / "cut" / "report.html").touch()
    (work / "data" / "train.csv").touch()
    execute(content, content=content, kaggle=tmp_path / "none")
    last = (work / "called").read_text().splitlines()[-2]
    words = "--recipe midm-2.0-mini --train_file data/train.csv --test_file data/test.csv"
    assert last == f"fine_tune {words}"


def test_on_kaggle_inputs_are_only_read(stubs, tmp_path):
    kaggle = tmp_path / "kaggle"
    (kaggle / "working").mkdir(parents=True)
    shutil.copytree(stubs.parent, kaggle / "input" / "upload")
    competition = kaggle / "input" / "zz-competition"
    competition.mkdir()
    (competition / "train.csv").touch()
    execute(kaggle / "working", kaggle=kaggle, content=tmp_path / "none")
    called = (kaggle / "working" / "called").read_text().splitlines()
    assert called[0].endswith(
        f"--train_file {competition / 'train.csv'} --test_file {competition / 'test.csv'}"
    )
    assert not (kaggle / "input" / "upload" / "dandap" / "outputs").exists()


def test_a_script_that_fails_stops_the_notebook(stubs, tmp_path):
    (stubs / "inference.py").write_text("import sys; sys.exit('no GPU')")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"inference\.py ended with 1"):
        execute(stubs, content=tmp_path / "none", kaggle=tmp_path / "none")
