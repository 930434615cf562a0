"""Test dialogue inference: the file format, the prompts, the published recipes and a run."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import make_encoder

import fine_tune
from dandap.answering.run import answer, find_source
from dandap.data.korean import with_ro
from dandap.data.rows import Answers, template_fields
from dandap.errors import InputError
from dandap.model.load import load_tokenizer
from dandap.recipe import RECIPES_DIR, load_recipe, make_recipe
from prompts import render
from tasks import TASKS, checked_template
from tasks import dialogue_inference as nikl
from tools.demo.dialogues import make_dialogues, numbered

TASK = TASKS["dialogue_inference"]


@pytest.fixture(scope="module")
def items():
    return numbered(make_dialogues(count=4), "train")


def write(path, items, **layout):
    path.write_text(json.dumps(items, ensure_ascii=False, **layout), encoding="utf-8")
    return path


def make_answers(rows, letters):
    return Answers(rows, [{"prediction": letter} for letter in letters])


def fields_of(row):
    return template_fields(row, row.context, row.answers[0])


def test_rows_of_a_file(items, tmp_path):
    rows = TASK.read([write(tmp_path / "a.json", items)], {}, True).rows
    assert len(rows) == 12
    assert len({row.article for row in rows}) == 4, "items on one dialogue share it"
    first, content = rows[0], items[0]["input"]
    assert first.context.startswith(f"화자{content['conversation'][0]['speaker']}: ")
    assert first.choices == ("A", "B", "C")
    assert first.fields["option_B"] == content["inference_2"]
    assert first.answers == ("ABC"[int(items[0]["output"][-1]) - 1],)
    assert {row.fields["category"] for row in rows} == set(nikl.CATEGORIES)
    one, other = write(tmp_path / "a.json", items[:6]), write(tmp_path / "b.json", items[6:])
    assert len(TASK.read([one, other], {}, True).rows) == 12
    with pytest.raises(InputError, match="6 duplicate ids"):
        TASK.read([one, one], {}, True)
    with pytest.raises(InputError, match="fixed columns"):
        TASK.read([one], {"id": "x"}, True)


def test_items_without_an_output_and_decomposed_categories(items, tmp_path):
    test = copy.deepcopy(items[:3])
    test[0]["output"], test[1]["output"] = None, ""
    del test[2]["output"]
    test[0]["input"]["category"] = "\u110b\u116f\u11ab\u110b\u1175\u11ab "  # 원인 from a Mac
    rows = TASK.read([write(tmp_path / "a.json", test)], {}, False).rows
    assert [row.answers for row in rows] == [()] * 3
    assert rows[0].fields["category"] == "원인"


def test_submission_changes_only_outputs(items, tmp_path):
    """Unknown fields, the indent and the escapes are preserved."""
    test = [item | {"unknown": {"나": [1, None, True]}, "output": ""} for item in items]
    letters = ["ABC"[n % 3] for n in range(12)]
    for layout in ({}, {"indent": 2}, {"indent": 4}):
        for ensure_ascii in (False, True):
            path = tmp_path / "test.json"
            text = json.dumps(test, ensure_ascii=ensure_ascii, **layout) + "\n"
            path.write_text(text, encoding="utf-8")
            rows = TASK.read([path], {}, False).rows
            answers = make_answers(rows, letters)
            written, _ = TASK.submit(make_recipe({}, "test"), tmp_path, path, answers, None)
            filled = json.loads(written.read_text(encoding="utf-8"))
            outputs = [item["output"] for item in filled]
            assert outputs == [nikl.INFERENCES["ABC".index(letter)] for letter in letters]
            assert [item | {"output": ""} for item in filled] == test
            assert written.read_text(encoding="utf-8").count("\n") == text.count("\n")
            assert written.read_text(encoding="utf-8").isascii() == ensure_ascii


def test_lone_surrogate_stays_escaped(items, tmp_path):
    item = items[0] | {"id": "\ud83d", "output": ""}
    (tmp_path / "a.json").write_text(json.dumps([item]))
    rows = TASK.read([tmp_path / "a.json"], {}, False).rows
    nikl.write_filled(tmp_path / "b.json", tmp_path / "a.json", ["B"])
    assert rows[0].id == "?"
    (filled,) = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert filled == item | {"output": "inference_2"}


BROKEN = [
    (lambda item: item.pop("input"), "item 1 (train-1): a field is missing or has"),
    (lambda item: item.update(input=["a"]), "or has the wrong structure"),
    (lambda item: item.update(id=3), "a text is not a string"),
    (lambda item: item["input"]["conversation"][0].pop("speaker"), "lacks 'speaker'"),
    (lambda item: item["input"].update(category="결과"), "got the category '결과'"),
    (lambda item: item["input"].update(inference_2=" "), "or an empty inference"),
    (lambda item: item["input"].update(reference_id=["u"]), "got reference_id ['u']"),
    (lambda item: item["input"].update(conversation=[]), "conversation is empty"),
    (lambda item: item.update(output="A"), "got the output 'A'"),
    (lambda item: item.update(output=""), "has no output"),
]


def test_invalid_items_are_rejected(items, tmp_path):
    for change, message in BROKEN:
        item = copy.deepcopy(items[0]) | {"id": "train-1"}
        change(item)
        with pytest.raises(InputError) as error:
            TASK.read([write(tmp_path / "a.json", [item])], {}, True)
        assert message in str(error.value)
    for content, message in (({}, "expected a JSON list"), ([], "at least one"), ([3], "item 1")):
        with pytest.raises(InputError, match=message):
            TASK.read([write(tmp_path / "a.json", content)], {}, True)


def test_prompt_is_complete_for_every_category(items):
    """Regression: in the published code the particle replaced the whole question."""
    for name, (_, korean, definition) in nikl.CATEGORIES.items():
        row = next(nikl.to_row(item) for item in items if item["input"]["category"] == name)
        for template, asked in {
            "dialogue": with_ro(name),
            "dialogue_letter": with_ro(name),
            "dialogue_term": korean,
            "dialogue_detailed": korean,
            "dialogue_definition": definition,
            "dialogue_instruction": definition,
        }.items():
            text = render(checked_template(template, TASK.name), fields_of(row))["prompt"]
            parts = [row.context, "[대상 발화]", "[질문]", asked, "[선택지]"]
            parts += [f"{letter}. {row.fields[f'option_{letter}']}" for letter in "ABC"]
            places = [text.index(part) for part in parts]
            assert places == sorted(places), template
            assert len(text[places[2] : places[4]]) > 25, "the question is whole"


def test_answer_is_the_option_or_its_letter(items):
    row = nikl.to_row(items[0])
    letter = row.answers[0]
    text = row.fields[f"option_{letter}"]
    for template, expected in {
        "dialogue": f"{letter}. {text}",
        "dialogue_letter": letter,
        "dialogue_statement": text,
    }.items():
        fields = {"model": "data/demo_model", "task": TASK.name, "template": template}
        recipe = make_recipe(fields, "test")
        parts = checked_template(template, recipe.task)
        encoder = make_encoder(recipe, parts, load_tokenizer(recipe))
        (example,) = encoder.encode([row], 1000, answers=True)
        assert encoder.decode(example.answer_ids) == expected
    with pytest.raises(InputError, match="needs context and options or answer_text"):
        checked_template("concise", "dialogue_inference")


POLAR_2, POLAR_5 = "x2bee/POLAR-14B-v0.2", "x2bee/POLAR-14B-v0.5"
SOLAR, T3Q = "beomi/Solar-Ko-Recovery-11B", "chihoonlee10/T3Q-ko-solar-dpo-v7.0"
PUBLISHED = {  # model, method, learning rate, template, cleaned
    "dialogue-01": (POLAR_2, "nf4", 2e-4, "dialogue_term", False),
    "dialogue-02": (POLAR_5, "nf4", 2e-4, "dialogue_detailed", True),
    "dialogue-03": (POLAR_5, "nf4", 2e-4, "dialogue_definition", False),
    "dialogue-04": (POLAR_5, "nf4", 1e-4, "dialogue_instruction", False),
    "dialogue-05": (SOLAR, "none", 2e-4, "dialogue", True),
    "dialogue-06": (SOLAR, "none", 2e-4, "dialogue", False),
    "dialogue-07": (SOLAR, "none", 1e-4, "dialogue", False),
    "dialogue-08": (SOLAR, "none", 1e-4, "dialogue_instruction", False),
    "dialogue-09": (SOLAR, "none", 1e-4, "dialogue_definition", False),
    "dialogue-10": (SOLAR, "none", 1e-4, "dialogue_detailed", False),
    "dialogue-11": (T3Q, "none", 2e-4, "dialogue_instruction", False),
}
COMMON = {
    "task": "dialogue_inference",
    "compute_dtype": "bfloat16",
    "seed": 42,
    "epochs": 4,
    "questions_per_step": 64,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "max_length": 1024,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.01,
    "lora_target_modules": (
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj lm_head".split()
    ),
}


def test_published_recipes():
    assert {path.stem for path in RECIPES_DIR.glob("published/dialogue-[0-9]*.yaml")} == set(
        PUBLISHED
    )
    for name, published in PUBLISHED.items():
        recipe = load_recipe(name, {})
        files = [*recipe.train_file.split(","), recipe.test_file]
        (is_cleaned,) = {"refined" in file for file in files}
        found = (recipe.model, recipe.quantization, recipe.learning_rate, recipe.template)
        assert (*found, is_cleaned) == published, name
        assert {field: getattr(recipe, field) for field in COMMON} == COMMON, name


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a folder with sample dialogues and a finished run."""
    folder = tmp_path_factory.mktemp("dialogue")
    dialogues = make_dialogues()
    test = numbered(dialogues[10:14], "test")
    letters = [f"{item['id']},{'ABC'[int(item['output'][-1]) - 1]}\n" for item in test]
    write(folder / "train.json", numbered(dialogues[:10], "train"), indent=4)
    write(folder / "test.json", [{**item, "output": ""} for item in test], indent=4)
    (folder / "test_answers.csv").write_text("id,answer\n" + "".join(letters), encoding="utf-8")
    options = ["--epochs", "1", "--questions_per_step", "10", "--run_name", "run"]
    fine_tune.main(["--recipe", "dialogue-demo", *files_of(folder), *options])
    return folder


def files_of(folder):
    files = ["--train_file", str(folder / "train.json"), "--test_file", str(folder / "test.json")]
    return [*files, "--output_dir", str(folder / "outputs")]


def answer_with(work, test_file=None):
    return answer(find_source("run", str(work / "outputs"), None, {}), test_file)


def test_train_answer_and_combine(work, capsys):
    result = answer_with(work)
    out = capsys.readouterr().out
    assert 0 <= result.scores["accuracy"] <= 1
    assert "right A, predicted A" in out
    filled = json.loads(result.submission.read_text(encoding="utf-8"))
    empty = json.loads((work / "test.json").read_text(encoding="utf-8"))
    assert [{**item, "output": ""} for item in filled] == empty
    assert {item["output"] for item in filled} <= set(nikl.INFERENCES)
    path, _ = TASK.submit_combined(
        make_recipe({}, "test"), work, result.submission, result.answers.records
    )
    assert path == work / "final-result.json"
    assert json.loads(path.read_text(encoding="utf-8")) == filled


def test_gold_answers_must_be_letters(work, tmp_path):
    for name in ("test.json", "test_answers.csv"):
        text = (work / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(",A\n", ",inference_1\n"), encoding="utf-8")
    with pytest.raises(InputError, match="got inference_1 .* expected one of A, B, C"):
        answer_with(work, str(tmp_path / "test.json"))


@pytest.mark.slow
def test_published_recipes_train_and_vote(work):
    """Two steps each with the demo base model, in one command."""
    environment = os.environ | {
        "OUTPUT_DIR": str(work / "all"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    model = ["--model", "data/demo_model", "--compute_dtype", "auto"]
    more = ["--epochs", "0.6", "--questions_per_step", "10", "--validation_fraction", "0"]
    command = ["recipes/dialogue-all.sh", *files_of(work)[:4], *model, *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    recipes = [yaml.safe_load(file.read_text()) for file in (work / "all").glob("*/recipe.yaml")]
    assert len(recipes) == 11
    (final,) = (work / "all").glob("ensemble-hard-*/final-result.json")
    assert len(json.loads(final.read_text(encoding="utf-8"))) == 12
