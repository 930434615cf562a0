"""Run the commands of README and docs, page by page.

The demo base model replaces the base models of the hub, and a small run replaces RUN.
"""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.conftest import copy_project
from tests.test_readme import PAGES, README, commands_of

pytestmark = pytest.mark.slow

# Commands run by other tests or .ci/run, and commands that need Docker or a hub account.
SKIPPED = (
    *("pip install", "python -m venv", "ruff", "mypy", "pytest", "docker", "accelerate launch"),
    "recipes/dialogue-all.sh",
    *("python export.py RUN --to gguf", "python export.py RUN --to merged --push_to_hub NAME"),
)
BASE = "data/demo_model"
ROWS = 60


def is_skipped(command):
    return "<" in command or command.startswith(SKIPPED)


class PageRunner:
    """Runs the commands of a page in a copy of the project."""

    def __init__(self, folder):
        self.folder = copy_project(folder)
        for recipe in self.folder.glob("recipes/**/*.yaml"):
            text = recipe.read_text(encoding="utf-8")
            text = re.sub("^model: .*", f"model: {BASE}", text, flags=re.MULTILINE)
            text = text.replace("compute_dtype: float16", "compute_dtype: float32")  # for a CPU
            recipe.write_text(text, encoding="utf-8")
        self.has_data = False
        self.runs = []

    def start(self, words):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        words = [sys.executable if word == "python" else word for word in words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, cwd=self.folder, env=environment, text=True, **pipes)

    def run(self, words):
        process = self.start(words)
        printed, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, f"{shlex.join(words)}\n{printed[-3000:]}"

    def put_data(self):
        """Write the files that the README asks for to data/, from the first sample rows."""
        self.has_data = True
        data, sample = self.folder / "data", self.folder / "data" / "sample"
        for name in ("train.csv", "test.csv", "sample_submission.csv", "test_answers.csv"):
            with (sample / name).open(encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file))[: ROWS + 1]
            with (data / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
        for task in ("dialogue", "wallpaper"):
            (data / task).mkdir()
        shutil.copyfile(sample / "wallpaper_train.csv", data / "wallpaper" / "train.csv")
        shutil.copyfile(sample / "dialogue_test.json", data / "dialogue" / "test.json")
        items = json.loads((sample / "dialogue_train.json").read_text(encoding="utf-8"))
        for name, part in (("train", items[:ROWS]), ("dev", items[-ROWS:])):
            text = json.dumps(part, ensure_ascii=False, indent=2)
            (data / "dialogue" / f"{name}.json").write_text(text, encoding="utf-8")

    def make_run(self, name):
        words = ["python", "fine_tune.py", "--model", BASE, "--run_name", name]
        self.run([*words, "--evaluate_every", "none"])
        self.run(["python", "inference.py", "--run", f"outputs/{name}"])
        self.runs.append(name)

    def interrupt(self, words, beginning):
        """Start a command, and send SIGINT once it prints a line with this beginning."""
        process, is_interrupted = self.start(words), False
        for line in process.stdout:
            if line.startswith(beginning) and not is_interrupted:
                process.send_signal(signal.SIGINT)
                is_interrupted = True  # a second signal would not wait for the checkpoint
        assert is_interrupted
        assert process.wait() in (0, 130)

    def run_command(self, command):
        """Run a command of a page, with replacements for models and runs that do not exist."""
        words = shlex.split(command)
        if "data/train.csv" in words and not self.has_data:
            self.put_data()
        if "--resume" in words:
            train = ["python", "-u", "fine_tune.py", "--model", BASE, "--epochs", "20"]
            self.interrupt(train, "step")
        elif words[1] == "fine_tune.py" and self.has_data and "--plan" not in words:
            # The default base model is on the hub; those of the recipes were replaced above.
            words += ["--epochs", "0.3"] if "--recipe" in words else ["--model", BASE]
        for at, word in enumerate(words):
            if word.startswith("RUN") or word == "/kaggle/input/run":
                number = int(word[3:]) if word[3:].isdigit() else 1
                while len(self.runs) < number:
                    self.make_run(f"run{len(self.runs) + 1}")
                words[at] = f"outputs/{self.runs[number - 1]}"
        if words[1] == "app.py":
            self.interrupt(words, "page: http://127.0.0.1")
        else:
            self.run(words)


@pytest.mark.parametrize("page", [page for page in PAGES if "ko" not in str(page)], ids=str)
def test_commands_of_a_page_run(page, tmp_path):
    runner = PageRunner(tmp_path / "project")
    commands = [command for command in commands_of(page) if not is_skipped(command)]
    if page != README:
        runner.put_data()
        if any("inference" in command for command in commands):
            runner.make_run("run1")
    # Also repeated commands: the README has its first two without data, then with data.
    for command in commands:
        runner.run_command(command)
