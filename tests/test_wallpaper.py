"""Test wallpaper QA: rows of two questions with five answers, the scores and the submission."""

import csv
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_encoder

import fine_tune
import metrics
from dandap.answering.run import answer, find_source
from dandap.data.rows import Answers, Row
from dandap.errors import InputError
from dandap.model.load import load_tokenizer
from dandap.model.memory import Plan
from dandap.recipe import find_recipe, load_recipe
from dandap.training.batching import Batching
from tasks import TASKS, checked_template
from tasks import wallpaper_qa as wallpaper
from tasks.submission import SubmissionForm
from tools.demo.wallpaper import make_rows, make_test

TASK = TASKS["wallpaper_qa"]
HEADER = ["id", "질문_1", "질문_2", "category", *wallpaper.ANSWERS]
ROW = ["TRAIN_000", "왜 생기나?", "원인은?", "곰팡이", "답1", "답2", "답3", "답4", "답5"]


def test_row_has_two_questions_and_ten_pairs(write_csv):
    rows = TASK.read([write_csv([HEADER, ROW])], {}, True).rows
    assert [(row.id, row.question) for row in rows] == [
        ("TRAIN_000-1", "왜 생기나?"),
        ("TRAIN_000-2", "원인은?"),
    ]
    assert rows[0].answers == ("답1", "답2", "답3", "답4", "답5")
    assert rows[0].article == rows[1].article, "a split does not separate them"
    pairs = TASK.expand(rows)
    assert {(row.question, row.answers[0]) for row in pairs} == {
        (question, f"답{n}") for question in ("왜 생기나?", "원인은?") for n in range(1, 6)
    }
    assert len(pairs) == len({row.id for row in pairs}) == 10


def test_read_test_file(write_csv):
    path = write_csv(
        [["id", "질문"], ["007", "왜? 또한, 어떻게?"], ["NA", ""]], encoding="utf-8-sig"
    )
    assert TASK.recognizes(path)
    rows = TASK.read([path], {}, False).rows
    found = [(row.id, row.question, row.answers) for row in rows]
    assert found == [("007", "왜? 또한, 어떻게?", ()), ("NA", "", ())]


def test_invalid_training_files_are_rejected(write_csv):
    for rows, message in (
        ([["id", "질문"], ["a", "b"]], "no column '답변_1'"),
        ([HEADER[:-1], ROW[:-1]], "no column '답변_5'"),
        ([HEADER, [*ROW[:1], " ", *ROW[2:]]], "line 2: the id, a question"),
        ([HEADER, [*ROW[:4], "", "", "", "", ""]], "all answers are empty"),
        ([HEADER, ROW, ROW], "ids more than once"),
    ):
        with pytest.raises(InputError, match=message):
            TASK.read([write_csv(rows)], {}, True)


def test_character_rouge_l():
    for prediction, gold, expected in (
        ("가나다", "가나다", 1),
        ("가 나 다", "가나다", 1),
        ("가다", "가나다", 0.8),
        ("다가", "가나다", 0.4),
        ("라", "가", 0),
        ("", "가", 0),
    ):
        assert metrics.rouge_l(prediction, gold) == pytest.approx(expected)
        assert metrics.rouge_l(prediction, ["", gold]) == pytest.approx(expected)


def test_published_prompts_and_recipes():
    published = "주어진 질문에 대한 답을 출력 질문: {question} 답:"
    assert checked_template("wallpaper_instruction", "wallpaper_qa") == {"prompt": published}
    for name, model, target in (
        ("wallpaper-kogpt2", "skt/kogpt2-base-v2", "c_attn"),
        ("wallpaper-42dot-1.3b", "42dot/42dot_LLM-SFT-1.3B", "q_proj"),
        ("wallpaper-synatra-1.3b", "maywell/Synatra-42dot-1.3B", "q_proj"),
    ):
        recipe = load_recipe(name, {})
        found = (recipe.model, recipe.lora_target_modules, recipe.task)
        assert found == (model, [target], "wallpaper_qa")
        assert 200 <= recipe.max_new_tokens <= 300
        assert recipe.repetition_penalty > 1
        comment = find_recipe(name).read_text(encoding="utf-8")
        assert "CC BY-NC" in comment or "non-commercial" in comment


def test_training_reads_a_question_once_for_all_answers(write_csv):
    recipe = load_recipe("wallpaper-demo", {})
    rows = TASK.expand(TASK.read([write_csv([HEADER, ROW])], {}, True).rows)
    template = checked_template(recipe.template, recipe.task)
    encoder = make_encoder(recipe, template, load_tokenizer(recipe))
    examples = encoder.encode(rows, recipe.prompt_limit, answers=True)
    plan = Plan(torch.device("cpu"), torch.float32, 4096, False, None, None)
    ((part,),) = Batching.for_plan(plan, pad_id=0).micro_batches(examples)
    prompts = {tuple(example.prompt_ids) for example in examples}
    answers = sum(len(example.answer_ids) for example in examples)
    repeated = answers + sum(len(example.prompt_ids) for example in examples)
    assert len(prompts) == 2
    assert len(part.tree) <= sum(map(len, prompts)) + answers < repeated / 3


class Encoder:
    """A sentence encoder that returns 512 character counts."""

    def encode(self, texts, show_progress_bar):
        return np.array([np.bincount([ord(c) % 512 for c in t], minlength=512) for t in texts])


@pytest.fixture
def encoder(monkeypatch):
    wallpaper.embed.cache_clear()
    monkeypatch.setattr(wallpaper, "load_encoder", lambda model: Encoder())
    return "counts"


def test_no_embeddings_without_sentence_transformers(monkeypatch, capsys):
    wallpaper.load_encoder.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert wallpaper.embed(("가",), "any") is None
    assert "pip install -r requirements-extra.txt" in capsys.readouterr().out
    wallpaper.load_encoder.cache_clear()


def test_similarity_to_gold_answers(encoder):
    rows = [Row("a", "", "?", ("습기 때문입니다.", "물이 샙니다."))]
    rows.append(Row("b", "", "?", ("말립니다.",)))
    recipe = load_recipe("wallpaper-demo", {"embedding_model": encoder})
    scores = TASK.score_extra(recipe, rows, ["습기 때문입니다.", "말립니다."])["similarity"]
    assert scores["best"] == pytest.approx(1, abs=1e-5)
    assert scores["mean"] < scores["best"]
    assert scores["model"] == encoder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Train a run on a few rows, without an embedding model."""
    folder = tmp_path_factory.mktemp("wallpaper")
    rows = make_rows(14)
    tables = {
        "train": [list(rows[0]), *(list(row.values()) for row in rows[:10])],
        "test": [["id", "질문"], *(row[:2] for row in make_test(rows[10:]))],
    }
    for name, lines in tables.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(lines)
    options = "--recipe wallpaper-demo --max_new_tokens 8 --epochs 1 --run_name run "
    options += (
        f"--embedding_model nowhere --train_file {folder}/train.csv --test_file {folder}/test.csv "
    )
    fine_tune.main([*options.split(), "--output_dir", str(folder / "outputs")])
    return folder


def answer_with(work, **options):
    return answer(find_source("run", str(work / "outputs"), None, options))


def test_answers_are_written_without_embedding_model(work, capsys):
    result = answer_with(work)
    assert result.submission.name == "answers.csv"
    assert result.scores is None, "there are no gold answers"
    assert "no submission of sentence embeddings" in capsys.readouterr().out


def test_submission_has_the_answer_embeddings(work, encoder, capsys):
    """Regression: the id NA was read as a missing value, and 007 as 7."""
    ids = pd.read_csv(work / "test.csv", dtype=str, encoding="utf-8-sig")["id"].tolist()
    rows = [Row(name, "", "?") for name in ("NA", "007", "x")]
    recipe = load_recipe("wallpaper-demo", {"embedding_model": encoder})
    answers = Answers(rows, [{"prediction": "답"}] * 3)
    path, note = TASK.submit(recipe, work, work / "t.csv", answers, SubmissionForm())
    assert path.read_text(encoding="utf-8-sig").startswith("id,vec_0,vec_1,")
    assert "answers as text" in note
    golds = "".join(f'{name},"[""답"", ""습기""]"\n' for name in ids)
    (work / "test_answers.csv").write_text(f"id,answers\n{golds}", encoding="utf-8")
    result = answer_with(work, embedding_model=encoder)
    table = pd.read_csv(result.submission, encoding="utf-8-sig")
    assert list(table.columns) == ["id", *(f"vec_{n}" for n in range(512))]
    assert table["id"].tolist() == ids
    first = wallpaper.embed((result.answers.predictions[0],), encoder)[0]
    assert table.iloc[0, 1:].tolist() == pytest.approx(first.tolist(), abs=1e-6)
    out = capsys.readouterr().out
    assert "ROUGE-L" in out
