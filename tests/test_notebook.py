"""Run notebooks/colab.ipynb with nbclient in a fake Colab."""

import json
import shutil
import sys

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="pip install -r requirements-dev.txt")
nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-dev.txt")
pytest.importorskip("ipykernel", reason="pip install -r requirements-dev.txt")

NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
DRIVE = 'import pathlib\ndef mount(place):\n    pathlib.Path("drive-is-mounted").touch()\n'
FILES = 'import pathlib\ndef download(name):\n    pathlib.Path("downloaded").write_text(name)\n'
# Replaces fine_tune.py and inference.py: logs its arguments and creates a submission.
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
    """Run the notebook in a folder, with the paths of Colab and Kaggle replaced."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    for old, new in replaced.items():
        text = text.replace(f'"/{old}/', f'"{new.as_posix()}/')
    notebook = nbformat.reads(text, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


@pytest.fixture(autouse=True)
def _jupyter_kernel(tmp_path, monkeypatch):
    """Make this Python the only Jupyter kernel, with folders of its own."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    settings = {"argv": words, "display_name": "this", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(settings))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def stubs(tmp_path):
    """Make a project whose scripts log their calls."""
    project = tmp_path / "uploaded" / "dandap"
    (project / "data" / "sample").mkdir(parents=True)
    for name in ("fine_tune.py", "inference.py"):
        (project / name).write_text(STUB)
    (project / "requirements.txt").write_text("")
    (project / "data" / "sample" / "train.csv").touch()  # not the user's data
    return project


def test_colab_saves_everything_on_drive(stubs, tmp_path, monkeypatch):
    (tmp_path / "fake" / "google" / "colab").mkdir(parents=True)
    for name, text in (("drive", DRIVE), ("files", FILES), ("__init__", "")):
        (tmp_path / "fake" / "google" / "colab" / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    content = tmp_path / "content"
    drive = content / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    shutil.make_archive(str(drive / "dandap"), "zip", stubs.parent)
    execute(content, content=content, kaggle=tmp_path / "none")
    work = drive / "dandap-work"
    assert (content / "drive-is-mounted").is_file()
    assert (work / "called").read_text() == "fine_tune --recipe demo\ninference\n"
    assert (work / "downloaded").read_text() == "outputs/run/answers/test-1/submission.csv"

    # The next session, after a run was interrupted.
    (work / "called").unlink()
    (work / "outputs" / "cut" / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    execute(content, content=content, kaggle=tmp_path / "none")
    assert (work / "called").read_text() == "fine_tune --resume\ninference\n"
