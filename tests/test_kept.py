"""What large data gave is kept in files, and read from them only where nothing has changed."""

import io
import json

import pytest

from dandap.data import kept, kept_rows
from dandap.data import near_duplicates as near_copies
from dandap.data import read as questions
from dandap.data.near_duplicates import group_near_copies
from dandap.data.read import read
from dandap.data.tables import _lines
from dandap.errors import InputError

CSV = (
    "id,context,question,answer,is_impossible\n"
    '1,"매출은 5,000억원이다.",매출은?,"5,000억원",\n'
    '2,"매출은 5,000억원이다.",이익은?,"[""300억원"", ""3백억원""]",\n'
    '3,"둘째 \u1112\u1161\u11ab 기사다.\n끝",몇째인가?,둘째,false\n'
    "4,셋째 기사다.,없는가?,,true\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(kept_rows, "LARGE", 0)
    monkeypatch.setattr(near_copies, "MANY", 0)
    return tmp_path / "kept"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text(CSV, encoding="utf-8")
    return path


@pytest.fixture
def reads(monkeypatch):
    """Return a list that grows with every file that is parsed."""
    calls, before = [], questions._records

    def counted(*arguments):
        calls.append(1)
        return before(*arguments)

    monkeypatch.setattr(questions, "_records", counted)
    return calls


@pytest.mark.parametrize("need_answers", [True, False])
@pytest.mark.parametrize("at_once", [10_000, 2, 1])
def test_rows_that_were_kept_are_those_that_were_read(
    file, reads, monkeypatch, need_answers, at_once
):
    """Notes, impossible questions and line ends within texts included."""
    monkeypatch.setattr(kept_rows, "ROWS_AT_ONCE", at_once)
    first, second = (read(file, need_answers=need_answers) for _ in range(2))
    assert second == first
    assert len(reads) == 1
    assert len(first.rows) == (3 if need_answers else 4)
    assert any("decomposed" in note for note in second.notes)
    assert [dict(row.fields) for row in second.rows] == [dict(row.fields) for row in first.rows]
    assert second.rows[0].context is second.rows[1].context, "an article's text is held once"


CHANGED = {
    "its bytes": lambda file: (file.write_text(CSV + "5,다섯째.,몇?,다섯째,\n"), read(file)),
    "its name": lambda file: read(file.rename(file.with_name("other.csv"))),
    "what is needed": lambda file: read(file, need_answers=True),
    "its columns": lambda file: read(file, {"question": "context"}),
    "a folder of several": lambda file: (
        file.with_name("b.csv").write_text("context,question\n기사,질문\n"),
        read([file, file.with_name("b.csv")]),
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_has_changed_is_read_anew(file, reads, what):
    read(file)
    CHANGED[what](file)
    assert len(reads) >= 2


def test_other_code_reads_anew(file, reads, monkeypatch):
    read(file)
    monkeypatch.setattr(kept, "_code", lambda: b"edited")
    read(file)
    assert len(reads) == 2


def test_a_damaged_file_of_rows_is_made_anew(file, reads, folder, capsys):
    first = read(file)
    (damaged,) = folder.glob("*.arrow")
    damaged.write_bytes(damaged.read_bytes()[:300])
    assert read(file) == first
    assert "cannot be read" in capsys.readouterr().out
    assert read(file) == first
    assert len(reads) == 2


def test_a_file_that_cannot_be_used_is_refused_each_time(file, folder):
    file.write_text(CSV.replace("4,셋째", "1,셋째"), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(InputError, match="more than once .1.: '1'"):
            read(file)
    assert not list(folder.glob("*.arrow"))


def test_a_file_that_changes_while_it_is_read_is_refused(file, monkeypatch):
    monkeypatch.setattr(questions, "hash_file", lambda path: "of what was there before")
    with pytest.raises(InputError, match="changed while it was read. Start again"):
        read(file)


def test_a_small_file_is_not_kept(file, folder, monkeypatch):
    monkeypatch.setattr(kept_rows, "LARGE", 10_000)
    read(file)
    assert not folder.exists()


def test_groups_of_near_copies_are_kept(folder, monkeypatch):
    text = "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다고 4일 밝혔다. " * 5
    texts = {"a": text, "b": text + "끝.", "c": "다른 기사다. " * 20, "d": text.strip()}
    first = group_near_copies(texts)
    assert first == [{"a", "b", "d"}]
    monkeypatch.setattr(near_copies, "_group", lambda texts: [set(texts)])
    assert group_near_copies(texts) == first, "not searched again"
    (file,) = folder.glob("*.json")
    assert json.loads(file.read_text()) == [["a", "b", "d"]]
    assert group_near_copies(texts | {"c": text}) == [set(texts)], "other texts are searched"


@pytest.mark.parametrize(
    "text", ["", "a", "a\n", "\n\n", "a\r\nb\rc\nd", "\r", "\r\r\n\n\r", "a\u2028b\x85c\x0bd\ne"]
)
def test_lines_end_where_io_ends_them(text):
    assert list(_lines(text)) == list(io.StringIO(text, newline=""))
