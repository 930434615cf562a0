"""Test data files: encodings, separators, formats and layouts, and errors for invalid files."""

import json
import subprocess
import sys
import unicodedata
import zipfile
from datetime import date
from decimal import Decimal

import datasets
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dandap.data import rows as dataset
from dandap.data.near_duplicates import group_near_duplicates
from dandap.data.qa_formats import answer_texts
from dandap.data.read import read_answers, read_questions, typed_rows
from dandap.data.rows import article_groups, match_ids, split_by_article
from dandap.data.text import clean, comparable, html_text, trim
from dandap.errors import InputError

HEAD = "id,context,question,answer\n"
LINE = "a1,한빛전자는 36.7% 늘었다.,얼마나?,36.7%\n"
ROW = dict(zip(HEAD.strip().split(","), LINE.strip().split(","), strict=True))
FIELDS = (*list(ROW.values())[:3], ("36.7%",))


def write(folder, name, content):
    """Write text, bytes, or a value as JSON, and return the path."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    (folder / name).write_bytes(data)
    return folder / name


def first_of(path, columns=None):
    row = read_questions(path, columns, need_answers=True).rows[0]
    return row.id, row.context, row.question, row.answers


def rejected(path, message, need_answers=False):
    with pytest.raises(InputError, match=message):
        read_questions(path, need_answers=need_answers)


def test_csv_files(tmp_path):
    csv = HEAD + LINE
    trailing = HEAD.strip() + ",,\n" + LINE.strip() + ",,\n"
    cases = {
        "blank lines before.csv": "\n ,\n" + csv,
        "semicolons.csv": csv.replace(",", ";"),
        "tabs.tsv": csv.replace(",", "\t"),
        "bars.txt": csv.replace(",", "|"),
        "declared.csv": "sep=;\r\n" + csv.replace(",", ";"),
        "cp949.csv": csv.encode("cp949"),
        "UTF-16.csv": csv.encode("utf-16"),
        "one mark.csv": "\ufeff" + csv,
        "two marks.csv": "\ufeff\ufeff" + csv.replace("id", '"id"', 1),
        "Windows.csv": csv.replace("\n", "\r\n"),
        "NUL.csv": csv.replace("늘었다", "늘었\0다"),
        "spaces.csv": HEAD.replace(",", ", ") + 'a1, "한빛전자는 36.7% 늘었다.", 얼마나?, 36.7%\n',
        "trailing columns.csv": trailing,
        "repeated other column.csv": HEAD.strip() + ",비고,비고\n" + LINE.strip() + ",x,y\n",
        "empty answers.csv": HEAD.strip() + ",answers\n" + LINE.strip() + ",\n",
    }
    for name, content in cases.items():
        assert first_of(write(tmp_path, name, content)) == FIELDS, name


QA = {"id": "a1", "question": "얼마나?"}
TEXTS = {"text": ["36.7%"], "answer_start": [7]}
HF = {key: ROW[key] for key in ("id", "context", "question")} | {"answers": TEXTS}
PAGE = (
    "<!DOCTYPE html><html><head><title>x</title></head><body><p>한빛전자는 <b>36.7%</b> 늘었다.</p>"
    "<script>x</script></body></html>"
)


def squad(*qas, context=ROW["context"]):
    return {"version": "1", "data": [{"paragraphs": [{"context": context, "qas": list(qas)}]}]}


def test_json_files(tmp_path):
    lines = json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"id": "b"})
    answer = {"text": "36.7%", "answer_start": 7, "clue_text": "늘었다"}
    ai_hub = {
        "question_id": "a1",
        "question": "얼마나?",
        "answers": answer,
        "is_impossible": "false",
    }
    cases = {
        "lines.jsonl": lines,
        "cp949.jsonl": json.dumps(ROW, ensure_ascii=False).encode("cp949"),
        "marked.json": "\ufeff" + json.dumps([ROW]),
        "list.json": json.dumps([ROW], indent=1),
        "record.json": HF | {"answers": ["36.7%"]},
        "hub viewer.json": {"features": [{"name": "id"}], "rows": [{"row_idx": 0, "row": ROW}]},
        "hugging face.jsonl": HF,
        "empty answers.json": [ROW | {"answers": []}],
        "squad.json": squad(QA | {"answers": [{"text": "36.7%"}]}),
        "squad indented.json": json.dumps(squad(QA | {"answers": TEXTS}), indent=1),
        "documents.json": squad(QA | {"answers": TEXTS})["data"],
        "klue.json": squad({"guid": "a1", "question": "얼마나?", "answers": [{"text": "36.7%"}]}),
        "ai hub.json": squad(ai_hub),
        "korquad 2.json": {
            "data": [{"context": PAGE, "qas": [QA | {"answer": {"text": "<b>36.7%</b>"}}]}]
        },
    }
    for name, content in cases.items():
        assert first_of(write(tmp_path, name, content)) == FIELDS, name


def workbook(path, *rows, formats=()):
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append(row)
    for place, value, number_format in formats:
        made.active[place] = value
        made.active[place].number_format = number_format
    made.save(path)
    return path


def change(path, work):
    made = openpyxl.load_workbook(path)
    work(made.active)
    made.save(path)


def test_excel_files(tmp_path):
    rows = [list(ROW), list(ROW.values())]
    assert first_of(workbook(tmp_path / "a.xlsx", *rows)) == FIELDS
    assert first_of(workbook(tmp_path / "renamed.csv", *rows)) == FIELDS
    assert first_of(workbook(tmp_path / "blank row.xlsx", ["\u200b"], *rows)) == FIELDS
    # Excel escapes control characters like this.
    spelled = [rows[0], [*rows[1][:3], "36.7%_x000D_"]]
    assert first_of(workbook(tmp_path / "control.xlsx", *spelled)) == FIELDS
    unused = [[*rows[0], "날짜", "검수"], [*rows[1], date(2026, 1, 2), True]]
    assert first_of(workbook(tmp_path / "unused.xlsx", *unused)) == FIELDS
    rejected(workbook(tmp_path / "error.xlsx", rows[0], [*rows[1][:3], "#N/A"]), "cell D2: .*#N/A")
    # As Excel shows them; some programs write 11 as 11.0.
    for value, text in (
        (11.0, "11"),
        (40.370000000000005, "40.37"),
        (0.1 + 0.2, "0.3"),
        (123456792.0, "123456792"),
    ):
        numbers = [rows[0], [*rows[1][:3], value]]
        assert first_of(workbook(tmp_path / "number.xlsx", *numbers))[3] == (text,)
    rounded = workbook(tmp_path / "rounded.xlsx", *rows, formats=[("D2", 36.7, "0")])
    rejected(rounded, "cell D2: got 36.7 in the format '0'")
    displayed = workbook(tmp_path / "shown.xlsx", *rows, formats=[("D2", 0.367, "0.0%")])
    rejected(displayed, r"cell D2: got 0.367 in the format '0.0%'.*Format the column as text")
    hidden, merged = (
        workbook(tmp_path / "hidden.xlsx", *rows),
        workbook(tmp_path / "merged.xlsx", *rows),
    )
    change(hidden, lambda sheet: setattr(sheet.row_dimensions[2], "hidden", True))
    rejected(hidden, "hidden or filtered row 2: expected one visible value")
    change(merged, lambda sheet: sheet.merge_cells("B2:C2"))
    rejected(merged, "merged cells B2:C2")
    with zipfile.ZipFile(hidden) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(hidden, "w") as archive:  # with a prefix before the names of elements
        for name, part in parts.items():
            archive.writestr(
                name,
                part.replace(b"<row ", b"<x:row ")
                .replace(b"</row", b"</x:row")
                .replace(
                    b"<worksheet ",
                    b'<worksheet xmlns:x="http://schemas.openxmlfo'
                    b'rmats.org/spreadsheetml/2006/main" ',
                ),
            )
    rejected(hidden, "hidden or filtered row 2")
    change(merged, lambda sheet: sheet.parent.create_sheet("second"))
    change(merged, lambda sheet: setattr(sheet.parent.worksheets[0], "sheet_state", "hidden"))
    rejected(merged, "the first sheet is hidden")
    rejected(workbook(tmp_path / "formula.xlsx", rows[0], [*rows[1][:3], "=B2"]), "in cell D2")
    large = workbook(tmp_path / "large.xlsx", *rows)
    with zipfile.ZipFile(large, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("padding.xml", b"0" * 110_000_000)
    rejected(large, "unpacks to 110 MB")
    rejected(write(tmp_path, "torn.xlsx", b"PK\x03\x04"), "cannot be read .BadZipFile")


def test_parquet_and_csv_of_parquet(tmp_path):
    pd.DataFrame([HF]).to_parquet(tmp_path / "a.parquet")
    assert first_of(tmp_path / "a.parquet") == FIELDS
    # array(['36.7%'], dtype=object) in a cell
    pd.read_parquet(tmp_path / "a.parquet").to_csv(tmp_path / "a.csv", index=False)
    assert first_of(tmp_path / "a.csv") == FIELDS
    pd.DataFrame([ROW | {"id": 7, "answer": Decimal("36.70")}]).to_parquet(tmp_path / "b.parquet")
    assert first_of(tmp_path / "b.parquet") == ("7", *FIELDS[1:3], ("36.70",))
    table = pa.table(
        {name: [text] for name, text in ROW.items()} | {"answer": pa.array([36.7], "f4")}
    )
    pq.write_table(table, tmp_path / "c.parquet")
    assert first_of(tmp_path / "c.parquet")[3] == ("36.7",)
    rejected(write(tmp_path, "torn.parquet", b"PAR1 torn PAR1"), "cannot be read")
    rejected(write(tmp_path, "torn.arrow", b"torn"), "cannot be read")


def test_folder_saved_by_datasets(tmp_path):
    saved = datasets.Dataset.from_list([ROW])
    saved.save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(tmp_path / "saved").map(lambda row: row)  # writes a cache there
    assert len(list((tmp_path / "saved").glob("*.arrow"))) == 2
    assert first_of(tmp_path / "saved") == FIELDS
    datasets.DatasetDict(train=saved).save_to_disk(tmp_path / "parts")
    rejected(tmp_path / "parts", "has the folders 'train'; choose one of them")


def test_folder_of_files(tmp_path):
    for name in ("train-0.csv", "train-1.csv", "license_news.csv"):
        write(tmp_path, name, HEAD + LINE.replace("a1", name))
    for name in ("readme.md", "README.txt", "LICENSE.txt", "sample_submission.csv"):
        write(tmp_path, name, "x")
    ids = [row.id for row in read_questions(tmp_path).rows]
    assert ids == ["license_news.csv", "train-0.csv", "train-1.csv"]
    assert [row.id for row in read_questions([tmp_path / name for name in ids]).rows] == ids
    (tmp_path / "empty").mkdir()
    rejected(tmp_path / "empty", "has no data file")
    rejected(tmp_path / "nowhere.csv", "no file at")


def test_texts_and_ids_are_unchanged(tmp_path):
    text = 'id,context,question,answer\n0007,"  앞 빈칸\r\n둘째 줄",?,1.50\n1.0,나,?,NA\n 8 ,나,?,None\n'
    rows = read_questions(write(tmp_path, "a.csv", text)).rows
    assert [row.id for row in rows] == ["0007", "1.0", " 8 "]
    assert [row.answers for row in rows] == [("1.50",), ("NA",), ("None",)]
    assert rows[0].context == "  앞 빈칸\r\n둘째 줄"
    numbers = '{"id": 1, "context": "가", "question": "?", "answer": 36.70}\n'
    (row,) = read_questions(write(tmp_path, "a.jsonl", numbers)).rows
    assert (row.id, row.answers) == ("1", ("36.70",))


def test_columns(tmp_path):
    columns = {"id": "번호", "context": "본문", "question": "질문", "answer": "정답"}
    head = unicodedata.normalize("NFD", "번호,본문,질문,정답\n")
    assert first_of(write(tmp_path, "a.csv", head + LINE), columns) == FIELDS
    with pytest.raises(
        InputError, match="columns: got '기사', expected one of id, context, question"
    ):
        read_questions(tmp_path / "a.csv", {"기사": "본문"})


def test_rows_without_ids_get_numbers(tmp_path):
    rows = "context,question,answer\n기사,질문?,답\n기사,왜?,답\n"
    table = read_questions(write(tmp_path, "a.csv", rows), need_answers=True)
    assert [row.id for row in table.rows] == ["1", "2"]
    assert table.notes[0].startswith("a.csv has no column 'id'; its rows are numbered 1 to 2")
    qas = [{"question": "왜?", "answers": []}, {"question": "누구?", "answers": []}]
    table = read_questions(write(tmp_path, "b.json", squad(*qas)))
    assert [row.id for row in table.rows] == ["1", "2"]
    (tmp_path / "folder").mkdir()
    for name in ("a.csv", "a.jsonl"):
        content = rows if name == "a.csv" else {"context": "기사", "question": "왜?"}
        write(tmp_path / "folder", name, content)
    ids = [row.id for row in read_questions(tmp_path / "folder").rows]
    assert ids == ["a.csv-1", "a.csv-2", "a.jsonl-1"], "not twice a-1"


def test_html_is_converted_to_text(tmp_path):
    page = ROW | {"context": PAGE, "answer": "<b>36.7%</b>"}
    pd.DataFrame([page]).to_csv(tmp_path / "a.csv", index=False)
    assert first_of(tmp_path / "a.csv") == FIELDS
    assert "articles are HTML" in read_questions(tmp_path / "a.csv").notes[0]
    table = "<h1>제목</h1><table><tr><td>가</td><td>1&nbsp;000</td></tr></table>a &amp; b<br>끝"
    page = f"<html><head><style>p{{}}</style></head>{table}"
    assert html_text(page) == "제목\n가 1 000\na & b\n끝"
    tag = ROW | {"context": "<p>문단은 &lt;br&gt;로 나눈다.</p>", "answer": "<br>"}
    assert first_of(write(tmp_path, "b.json", [tag]))[3] == ("<br>",), "an answer that is a tag"
    no_text = write(tmp_path, "c.json", [ROW | {"context": "<p><img src=x></p>"}])
    assert read_questions(no_text).rows[0].context == ""
    rejected(no_text, "context is empty", need_answers=True)


def test_articles_with_angle_brackets_are_unchanged(tmp_path):
    tags = "<p>" + "<a " * 50_000 + "</p>"
    for context in ("<Table 1> 연도별 매출\n2024  10억", "HTML은 <p> 태그를 </p>로 닫는다.", tags):
        path = write(tmp_path, "a.json", [ROW | {"context": context, "answer": "<p>"}])
        assert first_of(path)[1::2] == (context, ("<p>",))


def test_impossible_questions_are_answered_but_not_trained(tmp_path):
    """SQuAD 2 has plausible answers for them."""
    frame = pd.DataFrame([ROW | {"is_impossible": False}, ROW | {"id": "b", "is_impossible": True}])
    frame.loc[2] = ROW | {"id": "c", "answer": "", "is_impossible": True}
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_excel(tmp_path / "a.xlsx", index=False)
    flags = f"{HEAD.strip()},is_impossible\n{LINE.strip()},no\nb,가,?,나,Y\nc,가,?,나,1.0\n"
    write(tmp_path, "flags.csv", flags)
    impossible = {"id": "b", "question": "?", "answers": [], "is_impossible": True}
    no_answer = {"id": "c", "question": "?", "answers": None}
    write(tmp_path, "a.json", squad(QA | {"answers": TEXTS}, impossible, no_answer))
    for path in sorted(tmp_path.iterdir()):
        table = read_questions(path, need_answers=True)
        assert [row.id for row in table.rows] == ["a1"], path
        assert table.notes[-1].startswith("2 questions without an answer were skipped")
        rows = read_questions(path).rows
        assert [row.answers for row in rows] == [("36.7%",), (), ()]
        assert rows[1].fields == {"impossible": "true"}


def test_answers(tmp_path):
    found = answer_texts([{"text": "가"}, "나", None, float("nan"), 412], "here")
    assert found == ["가", "나", "412"]
    with pytest.raises(InputError, match="here: an answer is .*'start': 1.*expected a string"):
        answer_texts({"start": 1}, "here")
    cells = {
        "['전주', '서울']": ("전주", "서울"),
        '["전주", "서울"]': ("전주", "서울"),
        "{'text': ['전주', '[속보] 서울'], 'answer_start': [1, 2]}": ("전주", "[속보] 서울"),
        "{'answer_start': array([1]), 'text': array(['전주'], dtype=object)}": ("전주",),
        "{'text': array(['전주'], dtype=object), 'answer_start': array([1])}": ("전주",),
        "[단독] 보도": ("[단독] 보도",),
        "__import__('os').system('false')": ("__import__('os').system('false')",),
    }
    for cell, expected in cells.items():
        for column in ("answer", "answers"):
            frame = pd.DataFrame([HF | {"answers": None} | {column: cell}])
            frame.to_csv(tmp_path / "a.csv", index=False)
            assert first_of(tmp_path / "a.csv")[3] == expected
    pd.DataFrame([HF | {"answers": '{"text": [36.70]}'}]).to_csv(tmp_path / "a.csv", index=False)
    assert first_of(tmp_path / "a.csv")[3] == ("36.70",)
    # The repr of a numpy array, which Python would read as 전주서울, and code to evaluate.
    for cell in ("['전주' '서울']", "['가', __import__('os').system('false'), '나']"):
        pd.DataFrame([HF | {"answers": cell}]).to_csv(tmp_path / "a.csv", index=False)
        rejected(tmp_path / "a.csv", "line 2: answers: .* is not a valid list")


def test_gold_answers_from_a_separate_file(tmp_path):
    path = write(tmp_path, "test_answers.csv", "id,answer\n0007,NA\nb,\"['전주', '서울']\"\n")
    assert read_answers(path) == {"0007": ("NA",), "b": ("전주", "서울")}
    for rows, message in (("a,1\na,2\n", "duplicate id a"), ("a,\n", "no answer for a")):
        with pytest.raises(InputError, match=message):
            read_answers(write(tmp_path, "b.csv", "id,answer\n" + rows))


def test_typed_questions_are_cleaned_like_files():
    first, second = typed_rows(PAGE, [" 얼마나?\u200b", "왜?"])
    assert (first.id, first.context, first.question) == ("1", FIELDS[1], "얼마나?")
    assert second.id == "2"


def test_every_row_of_a_test_file_is_read(tmp_path):
    path = write(tmp_path, "a.csv", "id,context,question\na,,질문?\nb,기사,\u200b\nc,기사,왜?\n")
    table = read_questions(path)
    assert [row.context for row in table.rows] == ["", "기사", "기사"]
    assert [row.question for row in table.rows] == ["질문?", "", "왜?"]
    assert table.notes[0].startswith("2 questions have no article or text")


def test_invisible_characters_are_stripped(tmp_path):
    path = write(tmp_path, "a.csv", HEAD + "a,\ufeff기사\u200b,\u200b질문?,36.7%\u200b\n")
    assert first_of(path) == ("a", "기사", "질문?", ("36.7%",))
    path = write(tmp_path, "b.csv", HEAD + "a,기사,질문?,\u200b\u200d\n")
    rejected(path, r"line 2 \(id a\): no answer", need_answers=True)


def test_only_hangul_is_composed(tmp_path):
    unchanged = "Ω Å 樂 ㎏ e\u0301"  # NFC would rewrite the first three and the last
    assert clean(unchanged + unicodedata.normalize("NFD", "각 낡 가")) == unchanged + "각 낡 가"
    assert clean("가\ud800나") == "가?나"
    path = write(tmp_path, "a.csv", HEAD + unicodedata.normalize("NFD", LINE))
    assert first_of(path) == FIELDS
    assert read_questions(path).notes == [
        "1 rows had decomposed Hangul, which was composed (NFC) (a1)"
    ]


def test_match_ids_trim_and_comparable():
    ids = [unicodedata.normalize("NFD", "가") + "1", " 2 "]
    assert list(map(match_ids(ids, ["가1", "2", "0007"]), ids)) == ["가1", "2"]
    assert match_ids(["1", "1 "], ["1", "1 "])("1 ") == "1 ", "ids that differ only in spaces"
    assert trim("\u200b \ufeff가 나\u200d\n") == "가 나"
    assert comparable("가 나\r\n\xa0다\u200b.") == comparable("가나다.")


INVALID_FILES = {
    "empty.csv": ("", "is empty"),
    "header.csv": (HEAD, "has no questions"),
    "bytes.csv": (HEAD.encode() + b"a,\xff\xfe\xff,c,d\n", "line 2: got the byte 0xff at 29"),
    "no answer column.csv": ("id,context,question\na,b,c\n", "no column 'answer'"),
    "renamed.csv": (
        "id,본문,물음\n",
        "no column 'context', .*--columns context=NAME,question=NAME",
    ),
    "repeated.csv": ("id,context,question,answer,context\n", "'context' more than once"),
    "million.csv": (",".join(f"c{i}" for i in range(10_000)), "and 9,992 more"),
    "title.csv": ("2026 경제 뉴스\n" + HEAD + LINE, "no column 'context'.*it has '2026 경제 뉴스'"),
    "glued.csv": (HEAD + LINE + "\ufeff" + HEAD + LINE, "line 3: a second header"),
    "short.csv": (HEAD + LINE + "b,b\n", "line 3: got 2 cells, expected 4"),
    "long.csv": (HEAD + 'b,"1\n2",3,4,5\n', "line 3: got 5 cells, expected 4"),
    "open quote.csv": (HEAD + '1,"기사,?,답\n2,"기사, 둘",?,답\n', "line 3: .*quotation mark"),
    "cp949.csv": (
        "가나다\n라마".encode("cp949") + b"\xff\n",
        "2: got the byte 0xff at 11, which is not valid cp949",
    ),
    "stray quote.csv": (HEAD + '1,"그는 "예"라고 했다",질문,답\n', "line 2: .*quotation mark"),
    "blank question.csv": (HEAD + "a,b, ,d\n", "line 2: question is empty"),
    "blank answer.csv": (HEAD + LINE + "b,b,c,\n", r"line 3 \(id b\): no answer"),
    "blank id.csv": (HEAD + " ,b,c,d\n", "line 2: got the id ' '; expected at most"),
    "same id.csv": (HEAD + LINE + LINE, r"1 duplicate ids: 'a1'"),
    "a.docx": ("x", "ends in '.docx'. Expected a .csv"),
    "old.xls": (b"\xd0\xcf\x11\xe0", "ends in '.xls'. Expected a .csv.* .xlsx"),
    "torn.jsonl": (json.dumps(ROW) + "\n{", "line 2: not valid JSON"),
    "nested.jsonl": ("[" * 100_000, "not valid JSON"),
    "digits.jsonl": (json.dumps(ROW).replace('"a1"', "9" * 5000), "got the id '9999"),
    "number.json": ({"data": [1]}, "data, entry 1: got 1; expected an object with context"),
    "document.json": ({"data": [{"paragraphs": [{"qas": [{}]}]}]}, "entry 1: not SQuAD-format"),
    "list as context.jsonl": (ROW | {"context": [1]}, "context is empty or not a string"),
    "some ids.json": ([HF | {"id": None}, HF], "entry 2: got an id, but the first row has none"),
    "flag.jsonl": (ROW | {"is_impossible": "예"}, "is_impossible is '예', expected true or false"),
    "xls.xlsx": (b"\xd0\xcf\x11\xe0", "an .xls file or has a password"),
    "packed.csv": (b"\x1f\x8b\x08", "is gzip-compressed"),
}


def test_invalid_files_are_rejected(tmp_path):
    for name, (content, message) in INVALID_FILES.items():
        path = write(tmp_path, name, content)
        with pytest.raises(InputError, match=message) as error:
            read_questions(path, need_answers=True)
        assert str(path) in str(error.value)
        assert len(str(error.value)) < 600


def test_articles_are_shared_and_reading_imports_no_pandas(tmp_path):
    path = write(tmp_path, "a.csv", HEAD + "".join(LINE.replace("a1", str(n)) for n in range(3)))
    code = (
        "import sys; from dandap.data.read import read_questions;"
        f"rows = read_questions({str(path)!r}).rows;"
        "assert rows[0].context is rows[1].context is rows[2].context;"
        "assert not {'pandas', 'torch', 'pyarrow', 'openpyxl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_same_questions_without_articles_are_not_split():
    names = [f"{copy}{n}" for n in range(60) for copy in "ab"]
    rows = [dataset.Row(name, "", f"{name[1:]}번 질문은?", group=name) for name in names]
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not {row.question for row in train} & {row.question for row in validation}


def test_near_duplicate_articles_are_not_split():
    article = "한빛전자는 3월 2일 전주 공장의 증설을 마쳤다고 밝혔다. 투자 금액은 {} 원이며 생산 능력은 연 42만 톤으로 늘었다. "
    others = [dataset.Row(f"o{n}", f"{n}번 회사의 {n * 7919} 억 원", "?") for n in range(30)]
    for n in range(40):
        text = article.format(n) * 3 + f"끝 {n}"
        copies = [text, text.replace(" ", "\xa0"), text.replace(". ", ".\r\n"), text + "\u200b"]
        copies.append(text.replace("밝혔다", "말했다", 1))
        rows = [dataset.Row(f"c{i}", copy, "?") for i, copy in enumerate(copies)]
        assert len({article_groups(rows)[row.article] for row in rows}) == 1
        train, validation = split_by_article([*rows, *others], 0.2)
        assert sum(any(row.id[0] == "c" for row in part) for part in (train, validation)) == 1


def test_group_of_a_unique_article_is_its_hash():
    """This keeps the split, and thus the scores, of earlier runs."""
    rows = [dataset.Row(str(n), f"기사 {n * 7919}", "?") for n in range(50)]
    assert article_groups(rows) == {row.article: row.article for row in rows}


def test_many_near_duplicates_are_one_group():
    """Regression: groups above 100 were missed. A line that is in all articles makes no group."""
    line = " ⓒ 한빛일보, 무단 전재 및 재배포 금지. 기자 김한결 hankyul@example.com"
    texts = {
        f"d{n}": f"{n}번째 기사는 {n * 104729} 과 {n * 7919} 을 다룬다, 그리고 {n**5} 도." + line
        for n in range(300)
    }
    story = "".join(chr(0xAC00 + (n * 7919) % 11172) for n in range(400))
    texts |= {f"c{n}": f"{story}{n}" for n in range(1000)}
    (group,) = group_near_duplicates(texts)
    assert group == {f"c{n}" for n in range(1000)}
