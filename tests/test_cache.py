"""Test that encoded questions and near-duplicate groups are cached and invalidated."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from dandap.data import cache, encode, near_duplicates
from dandap.data.encode import Encoder
from dandap.data.rows import Row
from prompts import get_template

LONG = "매출은 5,000억원이다. " * 60
ROWS = [
    Row("1", LONG, "매출은?", ("5,000억원",)),
    Row("2", LONG, "이익은?", ("300억원", "3백억원")),
    Row("3", "둘째 기사다.", "무엇인가?", ("기사",)),
    Row("4", "둘째 기사다. \n", "몇째인가?", ("둘째",)),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "LARGE", 1)
    monkeypatch.setattr(near_duplicates, "LARGE", 1)
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "hf" / "dandap")
    return tmp_path / "hf" / "dandap"


@pytest.fixture
def built(monkeypatch):
    """Return the list of cache entries written so far."""
    calls, write = [], cache._write
    monkeypatch.setattr(cache, "_write", lambda *args: (calls.append(args[0]), write(*args)))
    return calls


def encoder(template="concise", words=()):
    tokenizer = AutoTokenizer.from_pretrained("data/demo_model")
    tokenizer.add_tokens(list(words))
    return Encoder(tokenizer, get_template(template))


def load(encoder, rows=ROWS, limit=200, answers=True, on_overflow="trim"):
    return encoder.encode(rows, limit, answers, on_overflow)


def test_second_run_reads_the_cache(built, monkeypatch):
    first = load(encoder())
    assert first[0].trimmed > 0
    assert first[3].context == "둘째 기사다.", "as in the article's first row"
    assert load(encoder()) == first
    assert len(built) == 1
    monkeypatch.setattr(encode, "LARGE", 100)
    assert load(encoder()) == first


def test_every_change_invalidates_the_cache(built, monkeypatch):
    answer = Row("4", ROWS[3].context, ROWS[3].question, ("첫째",))
    question = Row("4", "둘째 기사다.", "?", ("둘째",))
    changes = [
        lambda: load(encoder("answer_bot")),
        lambda: load(encoder(words=["억원"])),
        lambda: load(encoder(), limit=150),
        lambda: load(encoder(), answers=False),
        lambda: load(encoder(), on_overflow="select"),
        lambda: load(encoder(), [*ROWS[:3], answer]),
        lambda: load(encoder(), [*ROWS[:3], question]),
        lambda: (monkeypatch.setattr(cache, "PACKAGES", ("torch",)), load(encoder())),
    ]
    load(encoder())
    for number, change in enumerate(changes, 2):
        change()
        assert len(set(built)) == len(built) == number


DAMAGE = {
    "torn": lambda file: file.write_bytes(file.read_bytes()[:200]),
    "empty": lambda file: file.write_bytes(b""),
    "another text": lambda file: file.write_bytes(file.read_bytes().replace(b"\x00", b"\x01")),
    "a fifo": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link": lambda file: (file.unlink(), file.symlink_to("/nonexistent")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no fifos")
def test_damaged_entry_is_rebuilt(folder, built, capsys):
    first = load(encoder())
    for number, damage in enumerate(DAMAGE.values(), 2):
        damage(built[0])
        assert load(encoder()) == first
        assert len(built) == number
        (line,) = capsys.readouterr().out.splitlines()
        assert "Rebuilding the damaged cache entry" in line
        assert load(encoder()) == first


def test_unwritable_folder_is_reported(folder, capsys):
    folder.parent.mkdir()
    folder.write_text("a file")
    assert [example.row for example in load(encoder())] == ROWS
    (line,) = capsys.readouterr().out.splitlines()
    assert "Cannot use the cache" in line


@pytest.mark.skipif(sys.platform == "win32", reason="no file modes")
def test_folder_is_private(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    load(encoder())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_only_unused_entries_are_removed(folder, built):
    load(encoder())
    os.utime(built[0], (0, 0))
    (folder / "old").mkdir()
    os.utime(folder / "old", (0, 0))
    (folder / "link").symlink_to("/nonexistent")
    load(encoder(), limit=150)
    names = {path.name for path in folder.iterdir() if path.suffix != ".lock"}
    assert names == {"old", "link", built[1].name}


KILLED = """
import os, pyarrow as pa
from pathlib import Path
from dandap.data import cache
cache.FOLDER = Path({folder!r})
schema = pa.schema({{"text": pa.string()}})
def build():
    yield pa.RecordBatch.from_pylist([{{"text": "a"}}], schema)
    {end}
print([batch["text"].to_pylist() for batch in cache.load_cached(["key"], schema, build)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_run_leaves_no_cache_entry(folder):
    def run(end):
        code = KILLED.format(folder=str(folder), end=end)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run("os.kill(os.getpid(), 9)").returncode == -signal.SIGKILL
    assert run("").stdout == "[['a']]\n"
    assert {path.suffix for path in folder.iterdir()} == {".arrow", ".lock"}


def test_near_duplicate_groups_are_cached(monkeypatch):
    text = "한빛전자는 올해 1분기 매출 1,240억 원을 기록했다고 4일 밝혔다. " * 5
    texts = {"a": text, "b": text + "끝.", "c": "다른 기사다. " * 20, "d": text.strip()}
    first = near_duplicates.group_near_duplicates(texts)
    assert first == [{"a", "b", "d"}]
    monkeypatch.setattr(near_duplicates, "_group", lambda texts: [set(texts)])
    assert near_duplicates.group_near_duplicates(texts) == first
    assert near_duplicates.group_near_duplicates(texts | {"c": text}) == [set(texts)]
