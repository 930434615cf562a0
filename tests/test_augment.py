"""Test tools.augment: pairs and joined questions."""

import csv

import pytest

from dandap.data.rows import split_by_article
from dandap.errors import InputError
from tasks import wallpaper_qa as wallpaper
from tools import augment
from tools.demo.wallpaper import make_rows


@pytest.fixture
def source(tmp_path):
    rows = make_rows(30)
    path = tmp_path / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return path


def read(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_pairs(source, tmp_path):
    assert augment.main(["pairs", str(source), str(tmp_path / "o.csv")]) == 300
    first = read(source)[0]
    made = [(row["질문"], row["답변_1"]) for row in read(tmp_path / "o.csv")[:10]]
    assert made == [
        (first[q], first[f"답변_{n}"]) for q in ("질문_1", "질문_2") for n in range(1, 6)
    ]


def test_join(source, tmp_path):
    assert augment.main(["join", str(source), str(tmp_path / "o.csv"), "--count", "40"]) == 40
    rows, made = {row["id"]: row for row in read(source)}, read(tmp_path / "o.csv")
    for row in made:
        one, other = (rows[name] for name in row["sources"].split())
        assert one["category"] == other["category"] == row["category"]
        first, second = row["질문"].split(" 또한, ")
        assert first in (one["질문_1"], one["질문_2"])
        assert second in (other["질문_1"], other["질문_2"])
        assert row["답변_3"] == f"{one['답변_3']} {other['답변_3']}"
        assert row["generated"] == "join"
    assert len({row["질문"] for row in made}) == 40
    again = tmp_path / "again.csv"
    augment.main(["join", str(source), str(again), "--count", "40"])
    assert again.read_bytes() == (tmp_path / "o.csv").read_bytes(), "the same seed"


def test_generated_rows_stay_out_of_validation_and_do_not_leak_it(source, tmp_path):
    augment.main(["join", str(source), str(tmp_path / "o.csv"), "--count", "60"])
    rows = wallpaper.TASK.read([source, tmp_path / "o.csv"], {}, True).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not any(row.fields["generated"] for row in validation)
    held_out = {row.group for row in validation}
    joined = [row for row in train if row.fields["generated"]]
    assert 0 < len(joined) < 60
    assert not any(held_out & set(row.fields["sources"].split()) for row in joined)


def test_invalid_input_is_rejected(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("id,질문,답변_1\n1,왜?,그래서\n", encoding="utf-8")
    for words, message in (
        ("pairs train.csv train.csv", "exists already"),
        ("join one.csv r.csv", "two rows to join"),
    ):
        with pytest.raises(InputError, match=message):
            augment.main(words.split())
        assert not (tmp_path / "r.csv").exists()
