"""What large data gave is kept in files, and read from them only where nothing has changed."""

import json

import pytest

from dandap.data import kept
from dandap.data import near_duplicates as near_copies
from dandap.data.near_duplicates import group_near_copies


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "folder", lambda: tmp_path / "kept")
    monkeypatch.setattr(near_copies, "MANY", 0)
    return tmp_path / "kept"


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
