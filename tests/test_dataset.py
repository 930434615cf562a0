"""Readers: every format, and a clear error for everything that cannot be used."""

import json
import unicodedata

import pytest

from dandap.data.read import read_questions as read
from dandap.data.rows import Row, split_by_article
from dandap.data.text import clean
from dandap.errors import InputError
from tests.conftest import HEADER

GOOD = ["a", "기사", "질문?", "답"]


def test_csv_keeps_everything_as_text(write_csv):
    path = write_csv(
        [HEADER, ["0007", "  앞 빈칸\n둘째 줄", "질문?", "1.50"], ["8", "나", "질문?", "NA"]]
    )
    first, second = read(path).rows
    assert (first.id, first.context, first.answers) == ("0007", "  앞 빈칸\n둘째 줄", ("1.50",))
    assert second.answers == ("NA",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_encodings(write_csv, encoding):
    table = read(write_csv([HEADER, ["a", "뷁 기사", "질문?", "답"]], encoding=encoding))
    assert table.rows[0].context == "뷁 기사"
    assert bool(table.notes) == (encoding == "cp949")


def test_decomposed_hangul_is_composed(write_csv):
    path = write_csv([HEADER, ["a", unicodedata.normalize("NFD", "한국은행"), "질문?", "답"]])
    assert read(path).rows[0].context == "한국은행"


def test_lone_surrogates_become_replacement_marks():
    assert clean("가\ud800나") == "가?나"


def test_columns_mapping(write_csv):
    path = write_csv([["번호", "본문", "질문", "정답"], GOOD])
    row = read(path, {"id": "번호", "context": "본문", "question": "질문", "answer": "정답"}).rows[
        0
    ]
    assert (row.id, row.answers) == ("a", ("답",))


def test_several_gold_answers_in_csv(write_csv):
    path = write_csv([[*HEADER, "answers"], [*GOOD, '["답", "정답"]']])
    assert read(path).rows[0].answers == ("답", "정답")


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": 1, "context": "가", "question": "나?", "answer": "다"}\n\n', encoding="utf-8"
    )
    assert read(path).rows[0].id == "1"


def squad(*qas):
    return {"data": [{"paragraphs": [{"context": "기사", "qas": list(qas)}]}]}


def test_squad_json_drops_and_counts_impossible_questions(tmp_path):
    path = tmp_path / "a.json"
    good = {"id": "1", "question": "나?", "answers": [{"text": "다"}, {"text": "라"}]}
    guid = {"guid": "2", "question": "나?", "answers": [{"text": "다"}], "is_impossible": False}
    path.write_text(
        json.dumps(
            squad(good, guid, {"id": "3", "question": "?", "answers": [], "is_impossible": True})
        )
    )
    table = read(path, need_answers=True)
    assert [(row.id, row.answers) for row in table.rows] == [("1", ("다", "라")), ("2", ("다",))]
    assert table.notes == [
        "1 questions without an answer were left out (is_impossible, or none given)"
    ]
    test = read(path)
    assert [row.id for row in test.rows] == ["1", "2", "3"], "a test file is answered whole"
    assert test.rows[2].fields == {"impossible": "true"}


BAD_CSV = {
    "a missing column": ([["id", "context", "question"], ["a", "b", "c"]], "no column 'answer'"),
    "several missing columns": (
        [["id", "본문", "물음"], ["a", "b", "c"]],
        "no column 'context', 'question', 'answer'; .*--columns context=NAME,question=NAME,answer=",
    ),
    "a misspelt column": ([["id", "contxt", "question", "answer"], GOOD], "Did you mean 'contxt'"),
    "a repeated column": ([["id", "context", "question", "context"], GOOD], "more than once"),
    "a header only": ([HEADER], "holds no questions"),
    "duplicate ids": ([HEADER, GOOD, GOOD], r"ids more than once \(1\): 'a'"),
    "an empty question": ([HEADER, ["a", "b", " ", "d"]], "line 2: question is empty"),
    "an empty context": ([HEADER, ["a", "", "c", "d"]], "line 2: context is empty"),
    "a missing answer": ([HEADER, GOOD, ["b", "b", "c", ""]], "id b.*no answer"),
    "a short row": ([HEADER, GOOD, ["b", "b"]], "line 3: got 2 cells, the header has 4"),
}


@pytest.mark.parametrize("name", BAD_CSV)
def test_bad_csv(write_csv, name):
    rows, message = BAD_CSV[name]
    with pytest.raises(InputError, match=message):
        read(write_csv(rows), need_answers=True)


BAD_FILES = {
    "empty.csv": (b"", "is empty"),
    "bytes.csv": (b"id,context,question,answer\na,\xff\xfe\xff,c,d\n", "neither UTF-8 nor cp949"),
    "quotes.csv": ('id,context,question,answer\na,"가,나?,다\n'.encode(), "line 2"),
    "a.json": (b"{", "not valid JSON"),
    "b.json": (b'{"data": [1]}', "data, entry 1: got 1; expected an object with context"),
    "c.json": (b"[]", "holds no questions"),
    "d.json": (
        b'{"data": [{"paragraphs": [{"qas": []}]}]}',
        "data, entry 1: it is not SQuAD-format JSON",
    ),
    "a.jsonl": (b"[1]\n", "entry 1: got 1; expected an object"),
    "b.jsonl": (b'{"id": "a"}\n', "no column 'context'"),
    "c.jsonl": (b'{"id": "a", "context": [1], "question": "?"}\n', "context is empty or no text"),
    "a.txt": (b"x", "has no column 'context', 'question'.*; it has 'x'"),
    "a.docx": (b"x", "expected a .csv, .tsv, .xlsx, .parquet, .arrow, .jsonl or .json file"),
    "a.xls": (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    "a.csv": (b"\x1f\x8b", "compressed with gzip"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    data, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no file at"):
        read(tmp_path / "nowhere.csv")


def test_validation_is_whole_articles_whatever_the_order(small_train):
    rows = read(small_train).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not {row.article for row in train} & {row.article for row in validation}
    assert len(train) + len(validation) == len(rows)
    again = split_by_article(rows[::-1], 0.3)[1]
    assert {row.id for row in again} == {row.id for row in validation}


def test_articles_chosen_by_the_same_hash_are_not_all_held_out():
    """As benchmarks.take chooses them: the smallest hashes, which validation takes as well."""
    rows = [Row(f"{n}", f"{n}번 회사는 {n * 7919}억 원을 벌었다.", "얼마?") for n in range(300)]
    first = sorted(rows, key=lambda row: row.article)[:30]
    held = split_by_article(first, 0.1)[1]
    assert len(held) == 6, "twice the share at most"
    assert {row.article for row in held} == {row.article for row in first[:6]}


def test_no_validation_and_only_one_article(small_train):
    rows = read(small_train).rows
    assert split_by_article(rows, 0) == (rows, [])
    with pytest.raises(InputError, match="nothing is left to train on"):
        split_by_article(rows[:2], 0.05)
