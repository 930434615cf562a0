"""Encoded questions are kept in a file, and read from it only where nothing has changed."""

from pathlib import Path

import pytest
from helpers import make_encoder
from transformers import AutoTokenizer

from dandap.data import encoded, kept
from dandap.data.encode import Encoder
from dandap.data.rows import Row
from dandap.recipe import Recipe
from tasks import checked_template

LONG = "매출은 5,000억원이다. " * 60
ROWS = [
    Row("1", LONG, "매출은?", ("5,000억원",)),
    Row("2", LONG, "이익은?", ("300억원", "3백억원")),
    Row("3", "둘째 기사다.", "무엇인가?", ("기사",)),
    Row("4", "둘째 기사다. \n", "몇째인가?", ("둘째",)),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(encoded, "FEW", 1)
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def encoder(template="concise", tokenizer=None):
    tokenizer = tokenizer or AutoTokenizer.from_pretrained("data/demo_model")
    recipe = Recipe(template=template)
    return make_encoder(recipe, checked_template(template, recipe.task), tokenizer)


def encode(encoder, rows=ROWS, limit=200, answers=True, on_overflow="trim"):
    return encoded.encode_kept(encoder, rows, limit, answers, on_overflow)


@pytest.fixture
def count(monkeypatch):
    """Return a list that grows with every encoding."""
    calls, before = [], Encoder.encode_rows

    def counted(self, *arguments):
        calls.append(1)
        return before(self, *arguments)

    monkeypatch.setattr(Encoder, "encode_rows", counted)
    return calls


def test_what_was_kept_is_what_was_encoded(count, monkeypatch):
    """Trimmed articles, white space around them and several batches of rows included."""
    monkeypatch.setattr(encoded, "ROWS_AT_ONCE", 3)
    first = encode(encoder())
    assert first[0].trimmed > 0
    assert first[3].context == "둘째 기사다.", "read as the group's first row has it"
    assert encode(encoder()) == first == encoder().encode_rows(ROWS, 200, True, "trim")
    assert len(count) == 2


def test_few_questions_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(encoded, "FEW", len(ROWS) + 1)
    encode(encoder())
    assert not folder.exists()


def other_stop():
    tokenizer = AutoTokenizer.from_pretrained("data/demo_model")
    tokenizer.add_tokens(["억원"])
    return encoder(tokenizer=tokenizer)


CHANGED = {
    "the template": lambda: encode(encoder("answer_bot")),
    "the tokenizer": lambda: encode(other_stop()),
    "the limit": lambda: encode(encoder(), limit=150),
    "without answers": lambda: encode(encoder(), answers=False),
    "how articles are cut": lambda: encode(encoder(), on_overflow="select"),
    "an answer": lambda: encode(encoder(), [*ROWS[:3], Row("4", *row_4(), ("첫째",))]),
    "a question": lambda: encode(encoder(), [*ROWS[:3], Row("4", "둘째 기사다.", "?", ("둘째",))]),
}


def row_4():
    return ROWS[3].context, ROWS[3].question


@pytest.mark.parametrize("what", CHANGED)
def test_what_has_changed_is_encoded_anew(count, what):
    encode(encoder())
    CHANGED[what]()
    assert len(count) == 2


def test_other_code_encodes_anew(count, monkeypatch):
    encode(encoder())
    monkeypatch.setattr(kept, "_code", lambda: b"edited")
    encode(encoder())
    assert len(count) == 2


def test_a_damaged_file_is_encoded_anew(folder, count, capsys):
    first = encode(encoder())
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    assert encode(encoder()) == first
    assert "cannot be read" in capsys.readouterr().out
    assert encode(encoder()) == first
    assert len(count) == 2


def test_a_folder_that_cannot_be_used_keeps_nothing(folder, count, capsys):
    folder.write_text("a file")
    assert [example.row for example in encode(encoder())] == ROWS
    assert "not kept for the next start" in capsys.readouterr().out
    assert len(count) == 1


def test_files_that_nobody_reads_are_deleted(folder, monkeypatch):
    encode(encoder())
    monkeypatch.setattr(kept, "UNUSED", -1)
    encode(encoder(), limit=150)
    assert len(list(folder.glob("*.arrow"))) == 1


def test_nothing_is_left_beside_the_file(folder):
    encode(encoder())
    assert {Path(file).suffix for file in folder.iterdir()} == {".arrow", ".lock"}
