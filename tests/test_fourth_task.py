"""Test that a fourth task needs only one file in tasks/ and one prompt template."""

import json

import pytest

import ensemble
import fine_tune
import prompts
import tasks
from dandap.answering.run import answer, find_source
from tools import explore

FILE = '''
"""Claims about news with a verdict, 참 or 거짓. The submission has one line per verdict."""

import json

from dandap.data.text import read_bytes
from dandap.data.rows import Row, Table
from dandap.files import write_text
from tasks.task import Task

VERDICTS = ("참", "거짓")


class ClaimCheck(Task):
    """Claims with a verdict, as JSON lines of name, article, claim and verdict."""

    name = "claim_check"
    needs = ("context", "question")
    sample = Row("a", "한빛전자는 부산에 있다.", "서울에 있다.", ("거짓",), choices=VERDICTS)
    headline = ("share_right",)

    def recognizes(self, path):
        return path.suffix == ".claims"

    def read(self, paths, columns, need_answers):
        (path,) = paths
        data, digest = read_bytes(path)
        rows = []
        for line in data.decode().splitlines():
            claim = json.loads(line)
            rows.append(
                Row(claim["name"], claim["article"], claim["claim"], (claim["verdict"],), VERDICTS)
            )
        return Table(path, rows, digest, ["claims were read"])

    def kind(self, row):
        return "부정" if "않" in row.question else "긍정"

    def score(self, rows, predictions):
        scores = super().score(rows, predictions)
        return scores | {
            "metric": "share of right verdicts",
            "share_right": scores["exact_match"],
            "share_right_interval": scores["exact_match_interval"],
        }

    def submit(self, recipe, folder, test_file, answers, form):
        write_text(folder / "verdicts.txt", "\\n".join(answers.predictions))
        return folder / "verdicts.txt", "verdicts are text"


TASK = ClaimCheck()
'''


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """Add the task, its template and data files, and return their folder."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "claim_check.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    for name, task in tasks.find_tasks(tasks.__path__).items():
        monkeypatch.setitem(tasks.TASKS, name, task)
    template = {"user": "{context}\n\n이 말은 참인가? {question}"}
    monkeypatch.setitem(prompts.TEMPLATES, "claim", template)
    for name, count in (("train", 24), ("test", 6)):
        lines = []
        for number in range(count):
            place, claimed = ("부산", "서울")[number % 2], ("부산", "서울")[number // 2 % 2]
            article = f"한빛전자 {number}호는 {place}에 있다."
            claim = {"name": f"{name}-{number}", "article": article, "claim": f"{claimed}에 있다."}
            claim["verdict"] = "참" if place == claimed else "거짓"
            lines.append(json.dumps(claim, ensure_ascii=False))
        (tmp_path / f"{name}.claims").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_task_is_one_file_and_one_template(claims, capsys):
    outputs = claims / "outputs"
    options = "--recipe demo --task claim_check --template claim --epochs 1 --run_name one "
    options += f"--train_file {claims}/train.claims --test_file {claims}/test.claims "
    options += f"--validation_fraction 0.2 --output_dir {outputs}"
    fine_tune.main(options.split())
    out = capsys.readouterr().out
    assert "claims were read" in out
    assert "validation: share right" in out

    results = [answer(find_source("one", str(outputs), None, {"seed": seed})) for seed in (42, 1)]
    out = capsys.readouterr().out
    assert "verdicts are text" in out
    first = results[0]
    assert 0 <= first.scores["share_right"] <= 1
    verdicts = first.submission.read_text(encoding="utf-8").split("\n")
    assert len(verdicts) == 6
    assert set(verdicts) <= {"참", "거짓"}
    assert "share right" in (first.folder / "report.html").read_text(encoding="utf-8")

    members = [str(result.folder) for result in results]
    ensemble.main([*members, "--output_dir", str(outputs), "--method", "hard"])
    assert len(list(outputs.glob("ensemble-*/verdicts.txt"))) == 1
    found = explore.main([str(claims / "train.claims"), "--template", "claim"])
    assert found["kinds"]
