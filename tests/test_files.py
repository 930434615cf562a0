"""The files that people have: every separator, encoding, kind and form is read, or named."""

import json
import unicodedata
import zipfile
from datetime import date
from decimal import Decimal

import datasets
import numpy as np
import openpyxl
import pandas as pd
import pytest

from dandap.console import shown
from dandap.data import rows as dataset
from dandap.data.near_duplicates import group_near_copies
from dandap.data.qa_formats import answer_texts
from dandap.data.read import read_questions as read
from dandap.data.rows import families, match_ids, split_by_article
from dandap.data.text import bare, clean, decode, html_text, trim
from dandap.errors import InputError

ROW = {"id": "a1", "context": "한빛전자는 36.7% 늘었다.", "question": "얼마나?", "answer": "36.7%"}
LINE = "a1,한빛전자는 36.7% 늘었다.,얼마나?,36.7%\n"
HEAD = "id,context,question,answer\n"


def the_row(table):
    (row,) = table.rows
    return row.id, row.context, row.question, row.answers


WHOLE = ("a1", ROW["context"], ROW["question"], ("36.7%",))

TABLES = {
    "blank lines before": ("a.csv", ("\n ,\n" + HEAD + LINE).encode()),
    "semicolons": ("a.csv", (HEAD + LINE).replace(",", ";").encode()),
    "tabs": ("a.csv", (HEAD + LINE).replace(",", "\t").encode()),
    "tabs.tsv": ("a.tsv", (HEAD + LINE).replace(",", "\t").encode()),
    "a declared separator": ("a.csv", b"sep=;\r\n" + (HEAD + LINE).replace(",", ";").encode()),
    "a quoted cell with semicolons": ("a.csv", (HEAD.replace("id", '"id"') + LINE).encode()),
    "UTF-16": ("a.csv", (HEAD + LINE).encode("utf-16")),
    "Unicode text": ("a.txt", (HEAD + LINE).replace(",", "\t").encode("utf-16")),
    "two byte-order marks": ("a.csv", ("\ufeff\ufeff" + HEAD + LINE).encode()),
    "a quoted name after two marks": (
        "a.csv",
        ("\ufeff\ufeff" + '"id"' + HEAD[2:] + LINE).encode(),
    ),
    "capitals": ("a.csv", (HEAD.upper() + LINE).encode()),
    "padded names": ("a.csv", (HEAD.replace(",", " , ") + LINE).encode()),
    "empty columns behind": ("a.csv", (HEAD.strip() + ",,\n" + LINE.strip() + ",,\n").encode()),
    "empty cells behind": ("a.csv", (HEAD + LINE.strip() + ",,\n").encode()),
    "a repeated column of no interest": (
        "a.csv",
        (HEAD.strip() + ",비고,비고\n" + LINE.strip() + ",x,y\n").encode(),
    ),
    "cp949": ("a.csv", (HEAD + LINE).encode("cp949")),
    "spaces after separators": (
        "a.csv",
        (HEAD.replace(",", ", ") + 'a1, "한빛전자는 36.7% 늘었다.", 얼마나?, "36.7%"\n').encode(),
    ),
    "a column of numbers called #": (
        "a.csv",
        ("#," + HEAD.strip() + ",,\n1," + LINE.strip() + "\n").encode(),
    ),
    "no flag at a row's end": ("a.csv", (HEAD.strip() + ",is_impossible\n" + LINE).encode()),
    "an empty list beside an answer": (
        "a.csv",
        (HEAD.strip() + ",answers\n" + LINE.strip() + ",\n").encode(),
    ),
    "old mail": ("a.csv", b"\x1b$)C" + (HEAD + LINE).encode("iso2022_kr").removeprefix(b"\x1b$)C")),
    "Windows' line ends": ("a.csv", (HEAD + LINE).replace("\n", "\r\n").encode()),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    file, data = TABLES[name]
    (tmp_path / file).write_bytes(data)
    assert the_row(read(tmp_path / file, need_answers=True)) == WHOLE


def hugging_face(answers):
    return {key: value for key, value in ROW.items() if key != "answer"} | {"answers": answers}


def squad(*documents):
    return {"version": "1", "data": list(documents)}


QA = {"id": "a1", "question": ROW["question"]}
DICT = {"text": ["36.7%"], "answer_start": [7]}
FORMS = {
    "lines.jsonl": (json.dumps(ROW) + "\n\n"),
    "lines.json": json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "b"}),
    "list.json": json.dumps([ROW]),
    "to_dict.json": json.dumps({key: [value] for key, value in ROW.items()}),
    "to_dict on a line.jsonl": json.dumps(
        {key: [value, value + "2"] for key, value in ROW.items()}
    ),
    "SQuAD on a line.jsonl": json.dumps(
        {
            "version": "1",
            "data": [
                {
                    "paragraphs": [
                        {
                            "context": ROW["context"],
                            "qas": [
                                {
                                    "id": "a1",
                                    "question": ROW["question"],
                                    "answers": [{"text": "36.7%"}],
                                }
                            ],
                        }
                    ]
                }
            ],
        }
    ),
    "SQuAD on each line.jsonl": "\n".join(
        json.dumps(
            {
                "data": [
                    {
                        "paragraphs": [
                            {
                                "context": ROW["context"],
                                "qas": [
                                    {
                                        "id": name,
                                        "question": ROW["question"],
                                        "answers": [{"text": "36.7%"}],
                                    }
                                ],
                            }
                        ]
                    }
                ]
            }
        )
        for name in ("a1", "a2")
    ),
    "the hub's viewer with features.json": json.dumps(
        {"features": [{"name": "id"}], "rows": [{"row_idx": 0, "row": ROW}]}
    ),
    "the hub's rows.jsonl": json.dumps({"row": ROW})
    + "\n"
    + json.dumps({"row": ROW | {"id": "b"}}),
    "capitals on a line.jsonl": json.dumps(
        {"id": "a1", "Context": ROW["context"], "Question": ROW["question"], "answers": ["36.7%"]}
    ),
    "one record.json": json.dumps(
        {"id": "a1", "context": ROW["context"], "question": ROW["question"], "answers": ["36.7%"]}
    ),
    "an empty list beside an answer.json": json.dumps([ROW | {"answers": []}]),
    "list.jsonl": json.dumps([ROW]),
    "columns.json": json.dumps({key: {"0": value} for key, value in ROW.items()}),
    "split.json": json.dumps({"columns": list(ROW), "index": [0], "data": [list(ROW.values())]}),
    "index.json": json.dumps({"0": ROW}),
    "a named list.json": json.dumps({"version": "1", "train": [ROW]}),
    "the hub's viewer.json": json.dumps({"rows": [{"row_idx": 0, "row": ROW}]}),
    "flat in data.json": json.dumps(squad(hugging_face(DICT))),
    "hugging face.jsonl": json.dumps(hugging_face(DICT)),
    "answers.json": json.dumps([hugging_face(["36.7%", None])]),
    "numbers.json": json.dumps([ROW]).replace('"36.7%"', "36.70"),
    "squad.json": json.dumps(
        squad(
            {
                "paragraphs": [
                    {"context": ROW["context"], "qas": [QA | {"answers": [{"text": "36.7%"}]}]}
                ]
            }
        )
    ),
    "squad dict.json": json.dumps(
        squad({"paragraphs": [{"context": ROW["context"], "qas": [QA | {"answers": DICT}]}]})
    ),
    "aihub.json": json.dumps(
        squad(
            {
                "paragraphs": [
                    {
                        "context": ROW["context"],
                        "qas": [
                            {
                                "question_id": "a1",
                                "question": ROW["question"],
                                "answers": {
                                    "text": "36.7%",
                                    "answer_start": 7,
                                    "clue_text": "늘었다",
                                },
                                "is_impossible": "false",
                            }
                        ],
                    }
                ]
            }
        )
    ),
    "korquad2.json": json.dumps(
        squad(
            {
                "context": "<!DOCTYPE html><html><head><title>x</title></head><body><p>한빛전자는 <b>36.7%</b> 늘었다.</p>"
                "<script>x</script></body></html>",
                "qas": [QA | {"answer": {"text": "<b>36.7%</b>", "answer_start": 9}}],
            }
        )
    ),
    "documents.json": json.dumps(
        [{"paragraphs": [{"context": ROW["context"], "qas": [QA | {"answers": DICT}]}]}]
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_json(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    rows = read(tmp_path / name, need_answers=True).rows
    expected = ("36.70",) if name.startswith("numbers") else ("36.7%",)
    assert (rows[0].id, rows[0].context, rows[0].question, rows[0].answers) == (
        *WHOLE[:3],
        expected,
    )


def test_parquet_and_what_pandas_writes_of_it(tmp_path):
    frame = pd.DataFrame([hugging_face(DICT)])
    frame.to_parquet(tmp_path / "a.parquet")
    assert the_row(read(tmp_path / "a.parquet", need_answers=True)) == WHOLE
    pd.read_parquet(tmp_path / "a.parquet").to_csv(
        tmp_path / "a.csv", index=False
    )  # array(['36.7%'], dtype=object)
    assert the_row(read(tmp_path / "a.csv", need_answers=True)) == WHOLE


def book(path, *rows, **cells):
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append(row)
    for place, (value, shown_as) in cells.items():
        made.active[place] = value
        made.active[place].number_format = shown_as
    made.save(path)
    return path


PAGE = "<!DOCTYPE html><html><body><p>한빛전자는 <b>36.7%</b> 늘었다.</p><script>x</script></body></html>"
PAGES = {
    "a.csv": lambda row: pd.DataFrame([row]).to_csv(index=False),
    "a.jsonl": json.dumps,
    "paragraphs.json": lambda row: json.dumps(
        squad(
            {
                "paragraphs": [
                    {
                        "context": row["context"],
                        "qas": [QA | {"answers": [{"text": row["answer"]}]}],
                    }
                ]
            }
        )
    ),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_read_as_a_reader_sees_them_in_every_form(tmp_path, name):
    (tmp_path / name).write_text(
        PAGES[name](ROW | {"context": PAGE, "answer": "<b>36.7%</b>"}), encoding="utf-8"
    )
    table = read(tmp_path / name, need_answers=True)
    assert the_row(table) == WHOLE
    assert table.notes == ["1 articles are HTML, and are read as a reader sees them (a1)"]


@pytest.mark.parametrize(
    "context",
    [
        "<H1 실적 요약> 한빛전자는  매출이 늘었다.",
        "<P&G> 주가가 올랐다.",
        "<Table 1> 연도별 매출\n2024  10억",
        "유의확률은 <p=0.03>이다.",
        "HTML에서 <p> 태그는 </p>로 닫는다.",
        "<p> 태그는 문단이다.",
        "<p>" + "<a " * 50_000 + "</p>",
    ],
)
def test_articles_with_angle_brackets_stay_as_they_are(tmp_path, context):
    pd.DataFrame([ROW | {"context": context, "answer": "<p>"}]).to_csv(
        tmp_path / "a.csv", index=False
    )
    (row,) = read(tmp_path / "a.csv", need_answers=True).rows
    assert (row.context, row.answers) == (context, ("<p>",))


def test_a_page_without_text_is_no_article_and_its_head_need_not_end(tmp_path):
    pages = [
        "<p><img src=x></p>",
        "<html><head><title>t</title><body><p>매출 10억</p></body></html>",
    ]
    pd.DataFrame([ROW | {"id": str(n), "context": page} for n, page in enumerate(pages)]).to_csv(
        tmp_path / "a.csv", index=False
    )
    table = read(tmp_path / "a.csv")
    assert [row.context for row in table.rows] == ["", "매출 10억"]
    assert table.notes[0].startswith("1 questions lack their article")
    with pytest.raises(InputError, match=r"line 2: context is empty"):
        read(tmp_path / "a.csv", need_answers=True)


def test_an_answer_that_is_a_tag_is_kept(tmp_path):
    pd.DataFrame(
        [ROW | {"context": "<p>문단은 &lt;br&gt;로 나눈다.</p>", "answer": "<br>"}]
    ).to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", need_answers=True).rows[0].answers == ("<br>",)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.xlsx"])
def test_ids_that_look_like_numbers_stay_as_they_are(tmp_path, name):
    path = tmp_path / name
    if name.endswith("xlsx"):
        book(path, list(ROW), ["1.0", *list(ROW.values())[1:]])
    else:
        text = (
            json.dumps(ROW | {"id": "1.0"})
            if name.endswith("jsonl")
            else HEAD + LINE.replace("a1", "1.0")
        )
        path.write_text(text, encoding="utf-8")
    assert read(path).rows[0].id == "1.0"


@pytest.mark.parametrize(
    "cell", ["[36.70]", '{"text": [36.70]}', "{'text': [36.70], 'answer_start': [1]}"]
)
def test_numbers_in_lists_of_answers_stay_as_they_are_written(tmp_path, cell):
    frame = pd.DataFrame([{"id": "a", "context": "기사", "question": "?", "answers": cell}])
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", need_answers=True).rows[0].answers == ("36.70",)


def test_narrow_numbers_and_labels_of_arrow(tmp_path):
    pd.DataFrame([ROW | {"answer": np.float32(36.7)}]).astype({"answer": "float32"}).to_parquet(
        tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet", need_answers=True).rows[0].answers == ("36.7",)
    features = datasets.Features(
        {name: datasets.Value("string") for name in ROW}
        | {"answer": datasets.ClassLabel(names=["예", "아니오"])}
    )
    labelled = datasets.Dataset.from_list([ROW | {"answer": 1}], features=features)
    labelled.save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(tmp_path / "saved").map(lambda row: row)  # leaves a cache beside it
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 2
    (row,) = read(tmp_path / "saved", need_answers=True).rows
    assert row.answers == ("아니오",)


@pytest.mark.parametrize("first", [" ", "\u200b"])
def test_an_excel_row_of_nothing_above_the_header(tmp_path, first):
    assert (
        the_row(
            read(
                book(tmp_path / "a.xlsx", [first], list(ROW), list(ROW.values())), need_answers=True
            )
        )
        == WHOLE
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "xlsx"])
def test_questions_marked_impossible_are_not_learned_from_tables(tmp_path, kind):
    """SQuAD 2 gives them a plausible answer."""
    frame = pd.DataFrame([ROW | {"is_impossible": False}, ROW | {"id": "b", "is_impossible": True}])
    frame.loc[2] = ROW | {"id": "c", "answer": "", "is_impossible": True}
    path = tmp_path / f"a.{kind}"
    (frame.to_csv if kind == "csv" else frame.to_parquet if kind == "parquet" else frame.to_excel)(
        path, index=False
    )
    table = read(path, need_answers=True)
    assert the_row(table) == WHOLE
    assert table.notes == [
        "2 questions without an answer were left out (is_impossible, or none given)"
    ]
    tested = read(path).rows
    assert [(row.id, row.answers) for row in tested] == [
        ("a1", ("36.7%",)),
        ("b", ()),
        ("c", ()),
    ], "all are answered"


@pytest.mark.parametrize("flag", ["TRUE", "1", "1.0", "Y", "yes"])
def test_flags_as_spreadsheets_write_them(tmp_path, flag):
    (tmp_path / "a.csv").write_text(
        f"is_impossible,{HEAD}no,{LINE}{flag},{LINE.replace('a1', 'b')}", encoding="utf-8"
    )
    assert [row.id for row in read(tmp_path / "a.csv", need_answers=True).rows] == ["a1"]


def test_decimals_of_parquet_are_numbers(tmp_path):
    pd.DataFrame([ROW | {"answer": Decimal("36.70")}]).to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", need_answers=True).rows[0].answers == ("36.70",)


def test_a_folder_that_datasets_saved(tmp_path):
    datasets.Dataset.from_list([ROW]).save_to_disk(tmp_path / "one")
    assert the_row(read(tmp_path / "one", need_answers=True)) == WHOLE
    datasets.DatasetDict(train=datasets.Dataset.from_list([ROW])).save_to_disk(tmp_path / "parts")
    with pytest.raises(InputError, match="It holds the folders 'train'; name one of them"):
        read(tmp_path / "parts")


def test_an_excel_sheet_whose_size_is_written_wrong_is_read_whole(tmp_path):
    path = book(tmp_path / "a.xlsx", list(ROW), list(ROW.values()))
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    parts[sheet] = parts[sheet].replace(b'<dimension ref="A1:D2"', b'<dimension ref="A1"')
    with zipfile.ZipFile(path, "w") as changed:
        for name, content in parts.items():
            changed.writestr(name, content)
    assert the_row(read(path, need_answers=True)) == WHOLE


def test_an_excel_column_that_is_not_used_may_hold_anything(tmp_path):
    path = book(
        tmp_path / "a.xlsx", [*ROW, "날짜", "검수"], [*ROW.values(), date(2026, 1, 2), True]
    )
    assert the_row(read(path, need_answers=True)) == WHOLE
    path = book(tmp_path / "b.xlsx", list(ROW), [*list(ROW.values())[:3], "#N/A"])
    with pytest.raises(InputError, match="cell D2: it holds the error #N/A"):
        read(path)


@pytest.mark.parametrize(
    "fault",
    [
        TypeError("expected <class 'Fill'>"),
        AttributeError("no 'rows'"),
        KeyError("xl/workbook.xml"),
    ],
)
def test_a_workbook_that_openpyxl_cannot_open_is_named(tmp_path, monkeypatch, fault):
    path = book(tmp_path / "a.xlsx", list(ROW), list(ROW.values()))
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *a, **n: (_ for _ in ()).throw(fault))
    with pytest.raises(
        InputError, match=f"is an Excel workbook that cannot be read \\({type(fault).__name__}"
    ):
        read(path)


def test_excel_under_any_name(tmp_path):
    for name in ("a.xlsx", "renamed.csv"):
        assert (
            the_row(read(book(tmp_path / name, list(ROW), list(ROW.values())), need_answers=True))
            == WHOLE
        )


def test_a_cell_that_is_shown_as_something_else_is_named(tmp_path):
    """0.367 shown as 36.7% must not be learned as 0.367."""
    path = book(tmp_path / "a.xlsx", list(ROW), [*list(ROW.values())[:3], None], D2=(0.367, "0.0%"))
    with pytest.raises(
        InputError, match=r"cell D2: it holds 0.367, shown as '0.0%'.*Format the column as text"
    ):
        read(path)


def test_excel_without_openpyxl_is_told(tmp_path, monkeypatch):
    path = book(tmp_path / "a.xlsx", list(ROW), list(ROW.values()))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(
        InputError, match="is an Excel workbook: save it as CSV UTF-8, or install openpyxl"
    ):
        read(path)


def test_a_folder_of_files(tmp_path):
    for name in ("train-00000.csv", "train-00001.csv"):
        (tmp_path / name).write_text(HEAD + LINE.replace("a1", name), encoding="utf-8")
    for name in ("readme.md", "README.txt", "sample_submission.csv", "dataset_info.json"):
        (tmp_path / name).write_text("x")
    assert [row.id for row in read(tmp_path).rows] == ["train-00000.csv", "train-00001.csv"]
    with pytest.raises(InputError, match="holds no file that can be read"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")


def test_rows_of_files_with_one_stem_get_different_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("context,question\n기사,질문?\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"context": "기사", "question": "왜?"}\n', encoding="utf-8")
    assert [row.id for row in read(tmp_path).rows] == ["a.csv-1", "a.jsonl-1"]


NOT_DATA = {
    "a title": (
        "2026 경제 뉴스\n" + HEAD + LINE,
        "line 1: got '2026 경제 뉴스', expected the columns' names. Delete",
    ),
    "two titles": ("뉴스\n2026\n" + HEAD + LINE, "line 1: got '뉴스', expected the columns' names"),
    "a second header with other names": (
        HEAD + LINE + "id,본문,질문,정답\nb,기사,왜?,답\n",
        "line 3: a second header",
    ),
    "a title over semicolons": (
        ("뉴스\n" + HEAD + LINE).replace(",", ";"),
        "line 1: got '뉴스', expected the columns' names",
    ),
    "a title with empty cells": (
        "뉴스,,,\n" + HEAD + LINE,
        "line 1: got '뉴스', expected the columns' names",
    ),
    "a comment": (
        "# exported, 2026\n" + HEAD + LINE,
        "line 1: got '# exported', expected the columns' names",
    ),
    "JSON": (json.dumps([ROW]), "holds JSON under the name of a table. Rename it to .json"),
    "JSON lines": (
        json.dumps(ROW) + "\n" + json.dumps(ROW),
        "holds JSON under the name of a table",
    ),
    "a page": ("\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    "a pointer": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "a pointer of Git LFS.*git lfs pull",
    ),
    "a second header in another order": (
        HEAD + LINE + "id,question,context,answer\nb,왜?,기사,답\n",
        "line 3: a second header",
    ),
    "a second header with one more": (
        HEAD + LINE + "id,context,question,answer,출처\nb,기사,왜?,답,x\n",
        "line 3: a second header",
    ),
}


@pytest.mark.parametrize("name", NOT_DATA)
def test_what_is_no_table_is_named(tmp_path, name):
    text, message = NOT_DATA[name]
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"train": [ROW], "validation": [ROW]},
            "holds several lists, 'train', 'validation'. Save the one that is meant",
        ),
        ("<html><body>404</body></html>", "is a web page"),
        ({"본문": ["기사"], "질문": ["왜?"]}, "has no column 'context'.*; it has '본문', '질문'"),
        ({"data": {"문서": 1}}, "has no column 'context'.*; it has '문서'"),
    ],
)
def test_json_that_holds_no_records_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(
        content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
    )
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.json")


def test_decomposed_column_names(tmp_path):
    head = unicodedata.normalize("NFD", "번호,본문,질문,정답\n")
    (tmp_path / "a.csv").write_text(head + LINE, encoding="utf-8")
    columns = {"id": "번호", "context": "본문", "question": "질문", "answer": "정답"}
    assert the_row(read(tmp_path / "a.csv", columns, need_answers=True)) == WHOLE


def test_a_mapping_of_a_column_that_is_not_ours_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(HEAD + LINE, encoding="utf-8")
    with pytest.raises(InputError, match="columns: '기사' is none of id, context, question"):
        read(tmp_path / "a.csv", {"기사": "본문"})


def test_rows_without_ids_get_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(
        "context,question,answer\n기사,질문?,답\n기사,왜?,답\n", encoding="utf-8"
    )
    table = read(tmp_path / "a.csv", need_answers=True)
    assert [row.id for row in table.rows] == ["1", "2"]
    assert table.notes == [
        "a.csv has no column 'id'; its rows are called 1 to 2 (--columns id=NAME takes another "
        "column's)"
    ]


def test_a_header_in_the_middle_is_told(tmp_path):
    (tmp_path / "a.csv").write_text(HEAD + LINE + HEAD + LINE.replace("a1", "b1"), encoding="utf-8")
    table = read(tmp_path / "a.csv", need_answers=True)
    assert [row.id for row in table.rows] == ["a1", "b1"]
    assert table.notes == ["a.csv, line 3 is the header again (glued files); it was left out"]


def test_the_wrong_byte_is_named_where_it_stands():
    data = "가나다\n라마".encode("cp949") + b"\xff" + b"\n"
    with pytest.raises(
        InputError, match=r"line 2: the byte 0xff at 11 is wrong; up to there .* cp949"
    ):
        decode(data, dataset.Path("a.csv"))
    with pytest.raises(InputError, match=r"the byte 0xff at 6 is wrong; up to there .* utf-8"):
        decode("가나".encode() + b"\xff\xff", dataset.Path("a.csv"))


def test_a_test_file_is_answered_whole(tmp_path):
    (tmp_path / "a.csv").write_text(
        "id,context,question\na,,질문?\nb,기사,\u200b\nc,기사,왜?\n", encoding="utf-8"
    )
    table = read(tmp_path / "a.csv")
    assert [(row.id, row.context, row.question) for row in table.rows] == [
        ("a", "", "질문?"),
        ("b", "기사", ""),
        ("c", "기사", "왜?"),
    ]
    assert table.notes == [
        "2 questions lack their article or their text, and are answered as well as can be (a, b)"
    ]


def test_zero_width_characters_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_text(
        HEAD + "a,\ufeff기사\u200b,\u200b질문?,36.7%\u200b\n", encoding="utf-8"
    )
    (row,) = read(tmp_path / "a.csv", need_answers=True).rows
    assert (row.context, row.question, row.answers) == ("기사", "질문?", ("36.7%",))
    (tmp_path / "b.csv").write_text(HEAD + "a,기사,질문?,\u200b\u200d\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2 \(id a\): no answer"):
        read(tmp_path / "b.csv", need_answers=True)


def test_only_hangul_is_composed_and_that_is_told(tmp_path):
    kept = "Ω Å 樂 ㎏ e\u0301"  # NFC would rewrite the first three and the last
    assert clean(kept) == kept
    assert clean(unicodedata.normalize("NFD", "각 낡 가")) == "각 낡 가"
    (tmp_path / "a.csv").write_text(
        HEAD + unicodedata.normalize("NFD", LINE.replace(",36.7%", ",증가")), encoding="utf-8"
    )
    table = read(tmp_path / "a.csv", need_answers=True)
    assert the_row(table) == (*WHOLE[:3], ("증가",))
    assert table.notes == ["3 texts held decomposed Hangul, which was composed (a1, a1, a1)"]


def test_ids_stay_as_they_are():
    ids = [unicodedata.normalize("NFD", "가") + "1", " 2 ", "0007", "1.50"]
    assert match_ids(ids, ["가1", "2", "0007", "1.50"])(ids[0]) == "가1"
    assert match_ids(ids, ["가1", "2", "0007", "1.50"])(ids[1]) == "2"
    assert match_ids(["1", "1 "], ["1", "1 "])("1 ") == "1 ", "two ids that differ only so are two"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        (float("nan"), []),
        (412, ["412"]),
        ("36.70", ["36.70"]),
        ({"text": []}, []),
        ([{"text": "가"}, "나", None], ["가", "나"]),
    ],
)
def test_answers_in_any_form(value, expected):
    assert answer_texts(value, "here") == expected


def test_an_answer_may_begin_with_a_bracket(tmp_path):
    pd.DataFrame(
        [{"id": "a", "context": "기사", "question": "?", "answers": "[단독] 보도"}]
    ).to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", need_answers=True).rows[0].answers == ("[단독] 보도",)


def test_an_answer_that_is_no_answer_is_named():
    with pytest.raises(InputError, match="here: an answer is .*'start': 1.*expected a text"):
        answer_texts({"start": 1}, "here")


@pytest.mark.parametrize(
    "cell",
    ["['전주', '서울']", '["전주", "서울"]', "{'text': ['전주', '서울'], 'answer_start': [1, 2]}"],
)
@pytest.mark.parametrize("column", ["answer", "answers"])
def test_lists_that_were_saved_as_their_text(tmp_path, cell, column):
    pd.DataFrame([{"id": "a", "context": "전주", "question": "?", column: cell}]).to_csv(
        tmp_path / "a.csv", index=False
    )
    assert read(tmp_path / "a.csv", need_answers=True).rows[0].answers == ("전주", "서울")


def test_a_list_without_commas_is_not_read_as_one_word(tmp_path):
    """numpy prints ['전주' '서울'], which Python would join to 전주서울."""
    pd.DataFrame(
        [{"id": "a", "context": "전주", "question": "?", "answers": "['전주' '서울']"}]
    ).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match="line 2: answers: not valid JSON"):
        read(tmp_path / "a.csv", need_answers=True)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("깨진 \ufffd 글자", "signs of a wrong encoding"),
        ("\x0e9YAvH8\x0f", "signs of a wrong encoding"),
        ("삼성".encode().decode("latin-1"), "signs of a wrong encoding"),
        ("가" * 32_767, "exactly 32,767 characters"),
        ("S&amp;P500 지수", "hold HTML entities"),
    ],
)
def test_signs_of_damage_are_told(tmp_path, text, note):
    pd.DataFrame([ROW | {"context": text}]).to_csv(tmp_path / "a.csv", index=False)
    assert note in read(tmp_path / "a.csv").notes[-1]


def test_an_open_quotation_mark_that_swallows_rows_is_told(tmp_path):
    (tmp_path / "a.csv").write_text(
        HEAD + '1,"기사,질문,답\n2,기사,질문,답\n3,끝",질문,답\n', encoding="utf-8"
    )
    assert "line 4 ends a cell that holds what looks like rows" in read(tmp_path / "a.csv").notes[0]


def test_a_million_columns_make_a_short_message(tmp_path):
    (tmp_path / "a.csv").write_text(
        ",".join(f"c{i}" for i in range(10_000)) + "\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match="and 9,992 more") as error:
        read(tmp_path / "a.csv")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("text", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}", '{"a": }'])
def test_json_that_cannot_be_parsed(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(InputError):
        read(tmp_path / "a.jsonl")


def test_html_as_a_reader_sees_it():
    page = "<html><head><style>p{}</style></head><body><h1>제목</h1><table><tr><td>가</td><td>1&nbsp;000</td></tr></table>a &amp; b<br>끝"
    assert html_text(page) == "제목\n가 1 000\na & b\n끝"


def test_texts():
    assert trim("\u200b \ufeff가 나\u200d\n") == "가 나"
    assert bare("가 나\r\n\xa0다\u200b.") == bare("가나다.")
    assert shown("\x1b]52;c;x\x07가\n\t나\r\u202e") == "\\x1b]52;c;x\\x07가\n\t나\\r\\u202e"


def test_squad_without_ids_gets_numbers(tmp_path):
    qa = {"question": "왜?", "answers": [{"text": "답"}]}
    (tmp_path / "a.json").write_text(
        json.dumps(
            squad({"paragraphs": [{"context": "기사", "qas": [qa, qa | {"question": "누구?"}]}]})
        )
    )
    assert [row.id for row in read(tmp_path / "a.json").rows] == ["1", "2"]


def test_a_file_that_is_called_license_news_is_read(tmp_path):
    (tmp_path / "license_news.csv").write_text(HEAD + LINE, encoding="utf-8")
    (tmp_path / "LICENSE.txt").write_text("MIT")
    assert the_row(read(tmp_path, need_answers=True)) == WHOLE


def test_rows_without_articles_that_ask_the_same_fall_on_one_side():
    rows = [
        dataset.Row(f"{copy}{n}", "", f"{n}번 질문은 무엇인가?", group=f"{copy}{n}")
        for n in range(60)
        for copy in "ab"
    ]
    train, held = split_by_article(rows, 0.3)
    assert held
    assert not {row.question for row in train} & {row.question for row in held}


def test_copies_and_near_copies_fall_on_one_side():
    article = "한빛전자는 3월 2일 전주 공장의 증설을 마쳤다고 밝혔다. 투자 금액은 {} 원이며 생산 능력은 연 42만 톤으로 늘었다. "
    others = [
        dataset.Row(f"o{n}", f"{n}번 회사의 소식 {n * 7919} 억 원을 벌었다고 한다 {n}", "?")
        for n in range(30)
    ]
    for n in range(40):
        text = article.format(n) * 3 + f"끝 {n}"
        copies = [
            text.format(n),
            text.replace(" ", "\xa0"),
            text.replace(". ", ".\r\n"),
            text + "\u200b",
            text.replace("밝혔다", "말했다", 1),
        ]
        rows = [dataset.Row(f"c{i}", copy, "?") for i, copy in enumerate(copies)]
        assert len({families(rows)[row.article] for row in rows}) == 1
        train, held = split_by_article([*rows, *others], 0.2)
        assert (
            len({row.id[0] for row in train} & {"c"}) + len({row.id[0] for row in held} & {"c"})
            == 1
        )


def test_an_article_alone_is_split_as_it_always_was():
    """Its family is its own hash, so scores of earlier runs stay comparable."""
    rows = [dataset.Row(str(n), f"기사 {n * 7919}", "?") for n in range(50)]
    assert families(rows) == {row.article: row.article for row in rows}


def test_a_thousand_copies_are_one_group_whatever_their_number():
    """Groups above 100 were overlooked once, and a line that stands in all articles makes none."""
    line = " ⓒ 한빛일보, 무단 전재 및 재배포 금지. 기자 김한결 hankyul@example.com"
    texts = {
        f"d{n}": f"{n}번째 기사는 {n * 104729} 과 {n * 7919} 을 다룬다, 그리고 {n**5} 도." + line
        for n in range(300)
    }
    story = "".join(chr(0xAC00 + (n * 7919) % 11172) for n in range(400))
    texts |= {f"c{n}": f"{story}{n}" for n in range(1000)}
    (group,) = group_near_copies(texts)
    assert group == {f"c{n}" for n in range(1000)}
