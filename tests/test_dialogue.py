"""Test dialogue inference: the file's format, the prompts' particles and the published table.

The way from training to the vote is tested, too.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import make_encoder

import ensemble
import fine_tune
import inference
from dandap.data.korean import with_ro
from dandap.data.rows import Answered
from dandap.errors import InputError
from dandap.model.load import load_tokenizer
from dandap.recipe import RECIPES_DIR, load_recipe, make_recipe
from dandap.runs.folder import RunFolder
from prompts import render
from tasks import TASKS, checked_template
from tasks import dialogue_inference as nikl
from tasks.dialogue_inference import DEFINITIONS, TERMS_KO
from tasks.submission import SubmissionForm
from tools.demo.dialogues import make_dialogues, numbered

TASK = TASKS["dialogue_inference"]
SAMPLES = Path("data/sample")
TEMPLATES = [
    "dialogue",
    "dialogue_term",
    "dialogue_definition",
    "dialogue_instruction",
    "dialogue_detailed",
    "dialogue_letter",
]


@pytest.fixture(scope="module")
def items():
    return numbered(make_dialogues(count=4), "train")


SCORES = {"short": "1.10", "long": "0.12345678901234567891"}


def answered(rows, letters):
    return Answered(rows, [{"prediction": letter} for letter in letters])


def write(path, items, **layout):
    path.write_text(json.dumps(items, ensure_ascii=False, **layout), encoding="utf-8")
    return path


def test_rows_of_a_file(items, tmp_path):
    table = nikl.read([write(tmp_path / "a.json", items)], need_answers=True)
    assert len(table.rows) == 12
    assert len({row.article for row in table.rows}) == 4, "a dialogue's items share it"
    first, content = table.rows[0], items[0]["input"]
    assert first.context.startswith(f"화자{content['conversation'][0]['speaker']}: ")
    assert first.choices == ("A", "B", "C")
    assert first.fields["option_B"] == content["inference_2"]
    assert first.answers == ("ABC"[int(items[0]["output"][-1]) - 1],)
    assert {row.fields["category"] for row in table.rows} == set(nikl.CATEGORIES)


def test_several_files_are_one_table_and_ids_are_told_apart(items, tmp_path):
    one, other = write(tmp_path / "a.json", items[:6]), write(tmp_path / "b.json", items[6:])
    assert len(nikl.read([one, other], need_answers=True).rows) == 12
    with pytest.raises(InputError, match=r"ids more than once \(6\)"):
        nikl.read([one, one], need_answers=True)


@pytest.mark.parametrize("layout", [{"indent": 4}, {"indent": 2}, {}, {"separators": (",", ":")}])
def test_what_is_written_is_the_file_with_output_filled(items, tmp_path, layout):
    """Unknown fields, order, a list of utterance ids and the layout stay."""
    test = copy.deepcopy(items)
    for number, item in enumerate(test):
        item["output"] = ""
        item["unknown"] = {"나": [1, None, True], **{name: f"{name}!" for name in SCORES}}
        item["input"]["conversation"][0]["utterance_id"] = [
            "x",
            item["input"]["conversation"][0]["utterance_id"],
        ]
        item["input"]["extra"] = number
    path = write(tmp_path / "test.json", test, **layout)
    text = path.read_text(encoding="utf-8")
    for marker, digits in SCORES.items():
        text = text.replace(
            f'"{marker}!"', digits
        )  # written again from floats these would lose a 0, or digits
    path.write_text(text, encoding="utf-8")
    rows = nikl.read([path], need_answers=False).rows
    assert rows[0].answers == ()
    letters = ["ABC"[n % 3] for n in range(12)]
    written, _ = TASK.submit(
        make_recipe({}, "test"), tmp_path, path, answered(rows, letters), SubmissionForm()
    )
    text = written.read_text(encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    for letter in letters:
        name = nikl.INFERENCES["ABC".index(letter)]
        expected = expected.replace('"output": ""', f'"output": "{name}"', 1).replace(
            '"output":""', f'"output":"{name}"', 1
        )
    assert text == expected


def broken(items, change):
    item = copy.deepcopy(items[0])
    change(item)
    return [item]


BROKEN = {
    "no list": (lambda items: {}, "expected a JSON list"),
    "no items": (lambda items: [], "at least one item"),
    "no input": (lambda items: [{"id": "a"}], "item 1 (a): it is no object, or lacks 'input'"),
    "no speaker": (
        lambda items: broken(items, lambda i: i["input"]["conversation"][0].pop("speaker")),
        "it lacks 'speaker'",
    ),
    "an item that is none": (lambda items: [3], "item 1"),
    "another category": (
        lambda items: broken(items, lambda i: i["input"].update(category="결과")),
        "got the category '결과'",
    ),
    "an inference that is empty": (
        lambda items: broken(items, lambda i: i["input"].update(inference_2=" ")),
        "is empty or no text",
    ),
    "a reference to nothing": (
        lambda items: broken(items, lambda i: i["input"].update(reference_id=["u"])),
        "names the utterance u",
    ),
    "another output": (
        lambda items: broken(items, lambda i: i.update(output="A")),
        "got the output 'A'",
    ),
    "an empty conversation": (
        lambda items: broken(items, lambda i: i["input"].update(conversation=[])),
        "conversation is empty",
    ),
    "no output": (
        lambda items: broken(items, lambda i: i.update(output="")),
        "1 items have no output",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_such_one_is_told(items, tmp_path, name):
    make, message = BROKEN[name]
    with pytest.raises(InputError) as error:
        nikl.read([write(tmp_path / "a.json", make(items))], need_answers=True)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("원인", "원인으로"),
        ("후행사건", "후행사건으로"),
        ("전제", "전제로"),
        ("동기", "동기로"),
        ("반응", "반응으로"),
        ("결말", "결말로"),
    ],
)
def test_the_particle_follows_the_last_syllable(word, expected):
    assert with_ro(word) == expected


@pytest.mark.parametrize("category", nikl.CATEGORIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_holds_everything_for_every_category(items, template, category):
    """The published code had the particle overwrite the whole question."""
    row = next(nikl.to_row(item) for item in items if item["input"]["category"] == category)
    fields = TASK.fields(row.context, row, row.answers[0])
    text = checked_template(template, "dialogue_inference")["prompt"].format_map(fields)
    assert row.context in text
    assert (
        text.index(row.context)
        < text.index("[대상 발화]")
        < text.index("[질문]")
        < text.index("[선택지]")
    )
    assert all(f"{letter}. {row.fields[f'option_{letter}']}" in text for letter in "ABC")
    names = {"dialogue": with_ro(category), "dialogue_letter": with_ro(category)}
    names |= dict.fromkeys(("dialogue_definition", "dialogue_instruction"), DEFINITIONS[category])
    assert names.get(template, TERMS_KO[category]) in text
    question = text[text.index("[질문]") : text.index("[선택지]")]
    assert len(question) > 25, "the question is whole"


def test_the_terms_particle_stands_after_the_english(items):
    row = next(nikl.to_row(item) for item in items if item["input"]["category"] == "전제")
    assert "전제 조건(prerequisite)으로 가장" in TASK.fields("", row, "A")["question_term"]


@pytest.mark.parametrize(
    ("template", "learned"), [("dialogue", "{letter}. {text}"), ("dialogue_letter", "{letter}")]
)
def test_what_is_learned_is_the_option_or_its_letter(items, template, learned):
    row = nikl.to_row(items[0])
    recipe = make_recipe(
        {"model": "data/demo_model", "task": "dialogue_inference", "template": template}, "test"
    )
    encoder = make_encoder(recipe, checked_template(template, recipe.task), load_tokenizer(recipe))
    (example,) = encoder.encode([row], 1000, answers=True)
    letter = row.answers[0]
    assert encoder.decode(example.answer_ids) == learned.format(
        letter=letter, text=row.fields[f"option_{letter}"]
    )


def test_an_economic_template_does_not_fit():
    needed = "dialogue_inference needs {context} and {options} or {answer_text}"
    with pytest.raises(InputError, match=needed):
        checked_template("concise", "dialogue_inference")


def test_a_prompt_may_leave_the_options_out_where_the_answer_is_one_of_them(items):
    row = nikl.to_row(items[0])
    template = checked_template("dialogue_statement", "dialogue_inference")
    parts = render(template, TASK.fields(row.context, row, row.answers[0]))
    options = [row.fields[f"option_{letter}"] for letter in "ABC"]
    assert not any(option in parts["user"] for option in options)
    assert parts["answer"] == options["ABC".index(row.answers[0])]


POLAR_2, POLAR_5, SOLAR = (
    "x2bee/POLAR-14B-v0.2",
    "x2bee/POLAR-14B-v0.5",
    "beomi/Solar-Ko-Recovery-11B",
)
TABLE = {  # model, method, learning rate, prompt set, cleaned: the published table
    1: (POLAR_2, "QLoRA", 2e-4, "dialogue_term", False),
    2: (POLAR_5, "QLoRA", 2e-4, "dialogue_detailed", True),
    3: (POLAR_5, "QLoRA", 2e-4, "dialogue_definition", False),
    4: (POLAR_5, "QLoRA", 1e-4, "dialogue_instruction", False),
    5: (SOLAR, "LoRA", 2e-4, "dialogue", True),
    6: (SOLAR, "LoRA", 2e-4, "dialogue", False),
    7: (SOLAR, "LoRA", 1e-4, "dialogue", False),
    8: (SOLAR, "LoRA", 1e-4, "dialogue_instruction", False),
    9: (SOLAR, "LoRA", 1e-4, "dialogue_definition", False),
    10: (SOLAR, "LoRA", 1e-4, "dialogue_detailed", False),
    11: ("chihoonlee10/T3Q-ko-solar-dpo-v7.0", "LoRA", 2e-4, "dialogue_instruction", False),
}
COMMON = {
    **{
        "task": "dialogue_inference",
        "compute_dtype": "bfloat16",
        "seed": 42,
        "epochs": 4,
        "questions_per_step": 64,
    },
    **{
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "neftune_noise_alpha": None,
    },
    **{
        "gradient_checkpointing": True,
        "max_length": 1024,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.01,
    },
    "lora_target_modules": [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "lm_head",
    ],
}


@pytest.mark.parametrize("number", TABLE)
def test_the_published_table_cell_by_cell(number):
    recipe = load_recipe(f"dialogue-{number:02d}", {})
    model, method, learning_rate, template, cleaned = TABLE[number]
    assert (recipe.model, recipe.learning_rate, recipe.template) == (model, learning_rate, template)
    assert recipe.quantization == {"QLoRA": "nf4", "LoRA": "none"}[method]
    assert ["refined" in file for file in (*recipe.train_file.split(","), recipe.test_file)] == [
        cleaned
    ] * 3
    assert {name: getattr(recipe, name) for name in COMMON} == COMMON


def test_all_recipes_are_in_the_table():
    names = {path.stem for path in RECIPES_DIR.glob("dialogue-[0-9]*.yaml")}
    assert names == {f"dialogue-{number:02d}" for number in TABLE}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Files of sample dialogues and one finished run."""
    folder = tmp_path_factory.mktemp("dialogue")
    dialogues = make_dialogues()
    write(folder / "train.json", numbered(dialogues[:10], "train"), indent=4)
    test = numbered(dialogues[10:14], "test")
    (folder / "test_answers.csv").write_text(
        "id,answer\n"
        + "".join(f"{item['id']},{'ABC'[int(item['output'][-1]) - 1]}\n" for item in test),
        encoding="utf-8",
    )
    write(folder / "test.json", [{**item, "output": ""} for item in test], indent=4)
    fine_tune.main([*options(folder), "--recipe", "dialogue-demo", "--run_name", "run"])
    return folder


def options(folder):
    files = ["--train_file", str(folder / "train.json"), "--test_file", str(folder / "test.json")]
    return [
        *files,
        "--output_dir",
        str(folder / "outputs"),
        "--epochs",
        "1",
        "--questions_per_step",
        "10",
    ]


def test_from_training_to_a_filled_test_file(work, capsys):
    result = inference.main(["--run", str(work / "outputs" / "run")])
    out = capsys.readouterr().out
    assert 0 <= result["accuracy"] <= 1
    assert "where A is right it said A" in out
    assert "test: 원인" in out
    filled = json.loads(Path(result["submission"]).read_text(encoding="utf-8"))
    empty = json.loads((work / "test.json").read_text(encoding="utf-8"))
    assert [{**item, "output": ""} for item in filled] == empty
    assert {item["output"] for item in filled} <= set(nikl.INFERENCES)
    page = (Path(result["submission"]).parent / "report.html").read_text(encoding="utf-8")
    assert "said A" in page
    assert (RunFolder(work / "outputs" / "run").path / "report.html").is_file()


def test_a_hard_vote_is_written_as_the_final_result(work):
    for _ in range(2):
        inference.main(["--run", str(work / "outputs" / "run")])
    answers = sorted((work / "outputs" / "run" / "answers").glob("test-*"))[-2:]
    result = ensemble.main(
        [*map(str, answers), "--method", "hard", "--output_dir", str(work / "outputs")]
    )
    assert Path(result["submission"]).name == "final-result.json"
    final = json.loads(Path(result["submission"]).read_text(encoding="utf-8"))
    assert final == json.loads((answers[0] / "submission.json").read_text(encoding="utf-8"))


def test_gold_answers_are_letters_before_anything_is_answered(work, tmp_path):
    for name in ("test.json", "test_answers.csv"):
        text = (work / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace(",A\n", ",inference_1\n"), encoding="utf-8")
    with pytest.raises(InputError, match="is 'inference_1'; expected one of A, B, C"):
        inference.main(
            ["--run", str(work / "outputs" / "run"), "--test_file", str(tmp_path / "test.json")]
        )


def test_columns_are_for_economic_qa(work):
    with pytest.raises(InputError, match="columns maps the columns of economic_qa"):
        fine_tune.main([*options(work), "--recipe", "dialogue-demo", "--columns", "id=x"])


@pytest.mark.slow
def test_every_published_recipe_trains_answers_and_votes(work):
    """Two steps each, the demo's base in the place of theirs, in one command."""
    environment = os.environ | {
        "OUTPUT_DIR": str(work / "all"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [
        "recipes/dialogue-all.sh",
        *options(work)[:4],
        "--model",
        "data/demo_model",
        "--compute_dtype",
        "auto",
    ]
    more = ["--epochs", "0.6", "--questions_per_step", "10", "--validation_fraction", "0"]
    done = subprocess.run(
        [*command, *more], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])["questions"] == 12
    recipes = [yaml.safe_load(file.read_text()) for file in (work / "all").glob("*/recipe.yaml")]
    assert len(recipes) == 11
    assert next((work / "all").glob("ensemble-hard-*/final-result.json"))
