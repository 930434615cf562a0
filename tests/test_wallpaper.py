"""Test wallpaper QA: the file's 2 questions x 5 answers, the scores, and the submission.

Embeddings come from a tiny encoder.
"""

import csv
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import make_encoder

import fine_tune
import inference
import metrics
from dandap.data.rows import Row
from dandap.errors import InputError
from dandap.model.load import load_tokenizer
from dandap.model.memory import Plan
from dandap.recipe import RECIPES_DIR, load_recipe
from dandap.training.batching import make_batching
from prompts import render
from tasks import TASKS, checked_template
from tasks import wallpaper_qa as similarity
from tasks import wallpaper_qa as wallpaper
from tools import augment
from tools.demo.wallpaper import make_rows, make_test

HEADER = ["id", "질문_1", "질문_2", "category", *wallpaper.ANSWERS]
ROW = ["TRAIN_000", "왜 생기나?", "원인은?", "곰팡이", "답1", "답2", "답3", "답4", "답5"]


def test_a_row_is_two_questions_and_ten_pairs(write_csv):
    table = wallpaper.read([write_csv([HEADER, ROW])], need_answers=True)
    assert [(row.id, row.question) for row in table.rows] == [
        ("TRAIN_000-1", "왜 생기나?"),
        ("TRAIN_000-2", "원인은?"),
    ]
    assert table.rows[0].answers == ("답1", "답2", "답3", "답4", "답5")
    assert table.rows[0].article == table.rows[1].article, "they stay together in a split"
    pairs = wallpaper.one_per_answer(table.rows)
    assert len(pairs) == 10
    assert {(row.question, row.answers[0]) for row in pairs} == {
        (q, f"답{n}") for q in ("왜 생기나?", "원인은?") for n in range(1, 6)
    }
    assert len({row.id for row in pairs}) == 10


def test_a_test_file(write_csv):
    table = wallpaper.read(
        [write_csv([["id", "질문"], ["TEST_000", "왜? 또한, 어떻게?"]], encoding="utf-8-sig")],
        need_answers=False,
    )
    assert [(row.id, row.question, row.answers) for row in table.rows] == [
        ("TEST_000", "왜? 또한, 어떻게?", ())
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["id", "물음"], ["a", "b"]], "no column '질문'"),
        ([["id", "질문"], ["a", "b"]], "no column '답변_1'"),
        ([HEADER[:-1], ROW[:-1]], "no column '답변_5'"),
        ([HEADER, [*ROW[:1], " ", *ROW[2:]]], "line 2: the id, a question"),
        ([HEADER, [*ROW[:4], "", "", "", "", ""]], "every answer is empty"),
        ([HEADER, ROW, ROW], "ids more than once"),
        ([HEADER], "holds no questions"),
    ],
)
def test_what_cannot_be_trained_on_is_told(write_csv, rows, message):
    with pytest.raises(InputError, match=message):
        wallpaper.read([write_csv(rows)], need_answers=True)


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("가나다", "가나다", 1),
        ("가 나 다", "가나다", 1),
        ("가다", "가나다", 0.8),
        ("다가", "가나다", 0.4),
        ("라", "가", 0),
        ("", "가", 0),
    ],
)
def test_character_rouge_l(prediction, gold, expected):
    assert metrics.rouge_l(prediction, gold) == pytest.approx(expected)
    assert metrics.rouge_l(prediction, ["", gold]) == pytest.approx(expected)


def test_published_prompts_stand_verbatim():
    fields = {"question": "물음"}
    assert render(checked_template("wallpaper_bare", "wallpaper_qa"), fields) == {"prompt": "물음"}
    text = "주어진 질문에 대한 답을 출력 질문: 물음 답:"
    assert render(checked_template("wallpaper_instruction", "wallpaper_qa"), fields) == {
        "prompt": text
    }


@pytest.mark.parametrize(
    ("name", "model", "target"),
    [
        ("wallpaper-kogpt2", "skt/kogpt2-base-v2", ["c_attn"]),
        ("wallpaper-42dot-1.3b", "42dot/42dot_LLM-SFT-1.3B", ["q_proj"]),
        ("wallpaper-synatra-1.3b", "maywell/Synatra-42dot-1.3B", ["q_proj"]),
    ],
)
def test_the_seeds_recipes(name, model, target):
    recipe = load_recipe(name, {})
    assert (recipe.model, recipe.lora_target_modules, recipe.task) == (
        model,
        target,
        "wallpaper_qa",
    )
    assert 200 <= recipe.max_new_tokens <= 300
    assert recipe.repetition_penalty > 1
    assert "non-commercial" in (RECIPES_DIR / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Save a sentence encoder of 512 numbers with random weights."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    characters = sorted(
        {c for row in make_rows(40) for text in row.values() for c in text if c.strip()}
    )
    (folder / "vocab.txt").write_text(
        "\n".join(
            [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *characters,
                *(f"##{c}" for c in characters),
            ]
        ),
        encoding="utf-8",
    )
    tokenizer = BertTokenizerFast(
        str(folder / "vocab.txt"),
        tokenize_chinese_chars=False,
        do_lower_case=False,
        strip_accents=False,
    )
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    bert = models.Transformer(str(folder / "bert"))
    dense = models.Dense(32, 512)
    SentenceTransformer(modules=[bert, models.Pooling(32), dense], device="cpu").save(
        str(folder / "encoder")
    )
    return str(folder / "encoder")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Make a finished run on a few rows."""
    folder = tmp_path_factory.mktemp("wallpaper")
    rows = make_rows(14)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(list(row.values()) for row in rows[:10])])
    test = make_test(rows[10:])
    with (folder / "test.csv").open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["id", "질문"], *(row[:2] for row in test)])
    files = ["--train_file", str(folder / "train.csv"), "--test_file", str(folder / "test.csv")]
    more = [
        "--output_dir",
        str(folder / "outputs"),
        "--max_new_tokens",
        "24",
        "--run_name",
        "run",
        "--embedding_model",
        "nowhere",
    ]
    fine_tune.main(["--recipe", "wallpaper-demo", *files, *more])
    return folder


def test_training_reads_a_question_once_for_its_five_answers(write_csv):
    recipe = load_recipe("wallpaper-demo", {})
    rows = wallpaper.one_per_answer(
        wallpaper.read([write_csv([HEADER, ROW])], need_answers=True).rows
    )
    encoder = make_encoder(
        recipe, checked_template(recipe.template, recipe.task), load_tokenizer(recipe)
    )
    examples = encoder.encode(rows, recipe.prompt_limit, answers=True)
    (batch,) = make_batching(
        Plan(torch.device("cpu"), torch.float32, 4096, False, None, None), pad_id=0
    ).micro_batches(examples)
    (part,) = batch
    every_time = sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    prompts = {tuple(example.prompt_ids) for example in examples}
    assert len(prompts) == 2
    assert (
        len(part.tree)
        <= sum(map(len, prompts)) + sum(len(example.answer_ids) for example in examples)
        < every_time / 3
    )


def test_without_the_embedding_model_the_answers_are_written_and_it_is_told(work, capsys):
    result = inference.main(["--run", str(work / "outputs" / "run")])
    assert Path(result["submission"]).name == "answers.csv"
    out = capsys.readouterr().out
    assert (
        "no submission of sentence embeddings: the embedding model 'nowhere' cannot be loaded"
        in out
    )
    assert result["rouge_l"] is None, "there are no gold answers"


def test_without_the_library_the_way_to_it_is_told(monkeypatch):
    import sys

    similarity._load_once.cache_clear()
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"pip install -r requirements-extra\.txt"):
        similarity.embed(["가"], "any")
    similarity._load_once.cache_clear()


def test_the_submission_holds_the_answers_vectors(work, encoder, tmp_path, capsys):
    test = pd.read_csv(work / "test.csv", dtype=str, encoding="utf-8-sig")
    (work / "test_answers.csv").write_text(
        "id,answers\n" + "".join(f'{i},"[""답"", ""습기""]"\n' for i in test["id"]),
        encoding="utf-8",
    )
    result = inference.main(["--run", str(work / "outputs" / "run"), "--embedding_model", encoder])
    table = pd.read_csv(result["submission"], encoding="utf-8-sig")
    assert list(table.columns) == ["id", *(f"vec_{n}" for n in range(512))]
    assert table["id"].tolist() == test["id"].tolist()
    answers = pd.read_csv(
        Path(result["submission"]).with_name("answers.csv"), dtype=str, keep_default_na=False
    )["답변"].tolist()
    assert table.iloc[0, 1:].tolist() == pytest.approx(
        similarity.embed(answers[:1], encoder)[0], abs=1e-6
    )
    out = capsys.readouterr().out
    assert f"by {encoder}" in out, "the score names its model"
    assert "rouge l" in out


def test_parquet_and_capitals_are_read_by_the_tools_too(tmp_path):
    frame = pd.DataFrame([ROW, ROW], columns=[*HEADER[:3], "Category", *HEADER[4:]]).assign(
        id=[1, 2]
    )
    frame.loc[1, "답변_5"] = None
    frame.to_parquet(tmp_path / "a.parquet")
    assert augment.main(["pairs", str(tmp_path / "a.parquet"), str(tmp_path / "out.csv")]) == 18
    assert {
        row.fields["category"]
        for row in wallpaper.read([tmp_path / "out.csv"], need_answers=True).rows
    } == {ROW[3]}


def test_ids_of_the_files_own_may_hold_a_hash(write_csv):
    rows = [[f"T#{n}", *ROW[1:]] for n in range(40)]
    table = wallpaper.read([write_csv([HEADER, *rows])], need_answers=True)
    assert len({row.group for row in table.rows}) == 40


def test_similarity_of_the_same_text_is_one(encoder):
    rows = [Row("a", "", "?", ("습기 때문입니다.", "물이 샙니다."))]
    recipe = load_recipe("wallpaper-demo", {"embedding_model": encoder})
    scores = TASKS["wallpaper_qa"].final_score(recipe, rows, ["습기 때문입니다."])["similarity"]
    assert scores["best"] == pytest.approx(1, abs=1e-5)
    assert scores["mean"] < scores["best"]
    assert scores["model"] == encoder


def test_a_row_that_ends_before_its_id_is_refused(tmp_path):
    """Found by the random files of tests/reliability: it was a KeyError."""
    file = tmp_path / "train.csv"
    header = ",id,질문_1,질문_2,category,답변_1,답변_2,답변_3,답변_4,답변_5"
    file.write_text(f"{header}\naccept\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: the id, a question or every answer is empty"):
        TASKS["wallpaper_qa"].read([file], {}, True)
