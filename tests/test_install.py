"""Test that `pip install -e .` makes commands that run from any folder, and the Dockerfile."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dandap import cli
from tests.conftest import ROOT, copy_project

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command, cwd):
    """Run a command without the project on its path; return what it prints."""
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Install a copy of the project into a new environment that sees this one's packages."""
    folder = tmp_path_factory.mktemp("environment")
    project = copy_project(tmp_path_factory.mktemp("copy") / "project")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = next(folder.glob("*/python")) if os.name == "posix" else folder / "Scripts/python.exe"
    known = "\n".join(path for path in sys.path if path.endswith("site-packages"))
    (site,) = folder.glob("**/site-packages")
    (site / "known.pth").write_text(known)
    install = "-m pip install -q -e . --no-deps --no-build-isolation".split()
    run(python, *install, cwd=project)
    return python.parent


def test_every_command_starts_a_script():
    for command, target in PROJECT["project"]["scripts"].items():
        module, _, name = target.partition(":")
        assert (module, f"dandap-{name}") == ("dandap.cli", command)
        script = getattr(cli, name).args[0]
        assert (ROOT / f"{script.replace('.', '/')}.py").is_file()
    modules = PROJECT["tool"]["setuptools"]["py-modules"]
    assert modules == sorted(path.stem for path in ROOT.glob("*.py")), "a script is not installed"


def test_the_oldest_supported_versions_are_tested():
    """PIP_CONSTRAINT=requirements-oldest.txt .ci/run tests them; torch's is a GPU image's."""
    ranges, pins = {}, {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([\w-]+)>=([\d.]+),<=", line):
            ranges[match[1]] = match[2]
    for line in (ROOT / "requirements-oldest.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[name] = version
    assert ranges == pins


def test_commands_start_from_another_folder(scripts, tmp_path):
    assert "[user]" in run(scripts / "dandap-prompts", "concise", cwd=tmp_path)
    code = "from importlib.metadata import requires; print(*requires('dandap'), sep='\\n')"
    needed = run(next(scripts.glob("python*")), "-c", code, cwd=tmp_path).splitlines()
    assert "trl==1.16.0" in needed, "dependencies come from requirements.txt, without comments"
    help_text = run(scripts / "dandap-train", "--help", cwd=tmp_path)
    assert help_text.startswith("usage: dandap-train ")


@pytest.mark.slow
def test_training_and_answering_from_another_folder(scripts, tmp_path):
    """The demo is in the project; own files and runs are in the current folder."""
    short = ["--epochs", "0.05", "--evaluate_every", "none", "--validation_fraction", "0"]
    out = run(scripts / "dandap-train", "--recipe", "demo", *short, "--run_name", "a", cwd=tmp_path)
    assert "run saved in outputs" in out
    lines = (ROOT / "data/sample/test.csv").read_text(encoding="utf-8-sig").splitlines()
    end = next(n for n, line in enumerate(lines[2:], 2) if line.startswith("TEST_"))
    (tmp_path / "mine.csv").write_text("\n".join(lines[:end]), encoding="utf-8")
    out = run(scripts / "dandap-answer", "--test_file", "mine.csv", cwd=tmp_path)
    assert "mine.csv: 1 questions on 1 articles" in out
    assert list((tmp_path / "outputs" / "a" / "answers").glob("mine-*/submission.csv"))
    assert "submit.zip" in run(scripts / "dandap-submit", "a", cwd=tmp_path)


def test_the_dockerfile_passes_its_linter():
    """No image is built: that needs an engine."""
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not installed: pip install -r requirements-dev.txt")
    ended = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_image_installs_before_code_and_does_not_run_as_root():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line for line in lines if line and not line.startswith("#")]
    requirements = steps.index("COPY requirements.txt .")
    assert steps[requirements + 1].endswith("-r requirements.txt")
    assert steps.index("COPY . .") > requirements + 1, "a code change would reinstall everything"
    after = steps[steps.index("USER 1000") :]
    assert not [step for step in after if step.startswith(("RUN", "COPY", "USER root"))]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", "outputs", "data/*"} <= set(ignored), "users' files stay outside"
    name = steps[-1].split('"')[1]
    assert name in PROJECT["project"]["scripts"]
