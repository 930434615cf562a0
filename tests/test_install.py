"""Test that `pip install -e .` makes commands that run from any folder."""

import os
import subprocess
import sys
import tomllib

import pytest

from dandap import cli
from tests.conftest import ROOT, copy_project

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command, cwd):
    """Run a command without the project on its path and return its output."""
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    process = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Install a copy of the project into a new environment that can import our packages."""
    folder = tmp_path_factory.mktemp("environment")
    project = copy_project(tmp_path_factory.mktemp("copy") / "project")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = next(folder.glob("*/python")) if os.name == "posix" else folder / "Scripts/python.exe"
    site_packages = "\n".join(path for path in sys.path if path.endswith("site-packages"))
    (site,) = folder.glob("**/site-packages")
    (site / "known.pth").write_text(site_packages)
    install = "-m pip install -q -e . --no-deps --no-build-isolation".split()
    run(python, *install, cwd=project)
    return python.parent


def test_every_command_has_a_script():
    for command, target in PROJECT["project"]["scripts"].items():
        module, _, name = target.partition(":")
        assert (module, f"dandap-{name}") == ("dandap.cli", command)
        script = getattr(cli, name).args[0]
        assert (ROOT / f"{script.replace('.', '/')}.py").is_file()
    modules = PROJECT["tool"]["setuptools"]["py-modules"]
    assert modules == sorted(path.stem for path in ROOT.glob("*.py")), "a script is not installed"


def test_commands_run_from_another_folder(scripts, tmp_path):
    assert "[user]" in run(scripts / "dandap-prompts", "concise", cwd=tmp_path)
    code = "from importlib.metadata import requires; print(*requires('dandap'), sep='\\n')"
    needed = run(next(scripts.glob("python*")), "-c", code, cwd=tmp_path).splitlines()
    assert "trl==1.16.0" in needed, "dependencies come from requirements.txt, without comments"
    help_text = run(scripts / "dandap-train", "--help", cwd=tmp_path)
    assert help_text.startswith("usage: dandap-train ")
