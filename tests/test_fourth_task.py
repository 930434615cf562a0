"""Test a fourth task: one file of tasks/ and one template.

It is trained, answered, scored, reported, explored and joined.
"""

import json
from pathlib import Path

import pytest

import ensemble
import fine_tune
import inference
import prompts
import tasks
from tools import explore

FILE = '''
"""Claims on news, to be called 참 or 거짓; submitted as a line of text each."""

import json

from dandap.data.files import read_bytes
from dandap.data.rows import Row, Table
from dandap.files import write_text
from tasks.task import Task

VERDICTS = ("참", "거짓")


class ClaimCheck(Task):
    """Claims with a verdict, as JSON lines of name, article, claim and verdict."""

    name = "claim_check"
    needs = ("context", "claim")
    sample = Row(
        "sample", "한빛전자는 부산에 있다.", "한빛전자는 서울에 있다.", ("거짓",), choices=VERDICTS
    )
    headline = ("share_right",)

    def recognises(self, path):
        return path.suffix == ".claims"

    def read(self, paths, columns, need_answers):
        (path,) = paths
        data, digest = read_bytes(path)
        rows = []
        for line in data.decode().splitlines():
            claim = json.loads(line)
            answers = (claim["verdict"],) if claim.get("verdict") else ()
            row = Row(claim["name"], claim["article"], claim["claim"], answers, choices=VERDICTS)
            rows.append(row)
        return Table(path, rows, digest, ["claims were read"])

    def fields(self, context, row, answer):
        return {"context": context, "claim": row.question, "answer": answer}

    def kind(self, row):
        return "부정" if "않" in row.question else "긍정"

    def score(self, rows, predictions):
        scores = super().score(rows, predictions)
        return scores | {
            "metric": "share of right verdicts",
            "share_right": scores["exact_match"],
            "share_right_interval": scores["exact_match_interval"],
        }

    def remarks(self, scores):
        return [f"{scores['questions']} claims were judged"]

    def evaluation(self, scores):
        return self.with_interval("share_right", scores)

    def submit(self, recipe, folder, test_file, answered, form):
        write_text(folder / "verdicts.txt", "\\n".join(answered.predictions))
        return folder / "verdicts.txt", "verdicts are text"


TASK = ClaimCheck()
'''


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """Put the task's file where tasks are found, with its template and files of claims."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "claim_check.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "tasks")])
    for name, task in tasks.find_tasks(tasks.__path__).items():
        monkeypatch.setitem(tasks.TASKS, name, task)
    monkeypatch.setitem(
        prompts.TEMPLATES, "claim", {"user": "{context}\n\n이 말은 참인가? {claim}"}
    )
    for name, count in (("train", 24), ("test", 6)):
        lines = []
        for number in range(count):
            where, said = ("부산", "서울")[number % 2], ("부산", "서울")[number // 2 % 2]
            claim = {
                "name": f"{name}-{number}",
                "article": f"한빛전자 {number}호는 {where}에 있다.",
                "claim": f"{said}에 있다.",
            }
            lines.append(
                json.dumps(
                    claim | {"verdict": "참" if where == said else "거짓"}, ensure_ascii=False
                )
            )
        (tmp_path / f"{name}.claims").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_a_task_is_one_file_and_one_template(claims, capsys):
    recipe = [
        "--recipe",
        "demo",
        "--task",
        "claim_check",
        "--template",
        "claim",
        "--output_dir",
        str(claims / "outputs"),
    ]
    files = [
        "--train_file",
        str(claims / "train.claims"),
        "--test_file",
        str(claims / "test.claims"),
    ]
    fine_tune.main(
        [*recipe, *files, "--epochs", "1", "--run_name", "one", "--validation_fraction", "0.2"]
    )
    out = capsys.readouterr().out
    assert "claims were read" in out
    assert "validation: share right" in out
    assert "  share right " in next(
        line for line in out.splitlines() if line.startswith("step") and "grad_norm" not in line
    )
    results = [
        inference.main(["--run", str(claims / "outputs" / "one"), *more])
        for more in ([], ["--seed", "1"])
    ]
    out = capsys.readouterr().out
    assert "test: 6 claims were judged" in out
    assert "verdicts are text" in out
    assert set(results[0]) == {"share_right", "questions", "seconds", "submission"}
    folders = [Path(result["submission"]).parent for result in results]
    assert set((folders[0] / "verdicts.txt").read_text(encoding="utf-8").split("\n")) <= {
        "참",
        "거짓",
    }
    assert "6 claims were judged" in (folders[0] / "report.html").read_text(encoding="utf-8")
    joined = ensemble.main(
        [*map(str, folders), "--output_dir", str(claims / "outputs"), "--method", "hard"]
    )
    assert Path(joined["submission"]).name == "verdicts.txt"
    assert "share right" in capsys.readouterr().out
    explore.main([str(claims / "train.claims"), "--output_dir", str(claims / "outputs")])
    assert "kinds" in "".join(path.name for path in (claims / "outputs").glob("explore-train-*/*"))
