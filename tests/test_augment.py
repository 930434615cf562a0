"""Test more rows: pairs, joined questions, generated ones under review.

None of them is ever measured on.
"""

import csv
import http.server
import json
import threading

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
    rows = wallpaper.read([source, tmp_path / "o.csv"], need_answers=True).rows
    train, validation = split_by_article(rows, 0.3)
    assert not {row.group for row in train} & {row.group for row in validation}, (
        "a row and its pairs stay together"
    )


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
    assert again.read_bytes() == (tmp_path / "o.csv").read_bytes(), "a seed repeats it"


def test_made_rows_never_reach_validation_nor_leak_what_does(source, tmp_path):
    augment.main(["join", str(source), str(tmp_path / "o.csv"), "--count", "60"])
    rows = wallpaper.read([source, tmp_path / "o.csv"], need_answers=True).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not any(row.fields["generated"] for row in validation)
    held_out = {row.group for row in validation}
    joined = [row for row in train if row.fields["generated"]]
    assert 0 < len(joined) < 60
    assert not any(held_out & set(row.fields["sources"].split()) for row in joined)
    with pytest.raises(InputError, match="every row is marked as generated"):
        split_by_article(joined, 0.3)


@pytest.fixture
def server():
    """Serve an OpenAI-compatible endpoint: it asks about what it gets and gives five answers."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][
                0
            ]["content"]
            asked.append((self.path, self.headers.get("Authorization"), prompt))
            keyword = prompt.split("키워드: ")[-1].split("\n")[0]
            said = (
                "1. 하나입니다.\n2) 둘입니다.\n- 셋\n답변 4: 넷\n5. 다섯\n6. 여섯"
                if "도배업계" in prompt
                else f"질문: {keyword} 어떻게 하나요?"
            )
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_generated_rows_wait_for_a_person(source, tmp_path, server, monkeypatch, capsys):
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    (tmp_path / "keywords.txt").write_text(
        "실리콘 곰팡이\n강마루 찍힘\n강마루 찍힘 자국\n", encoding="utf-8"
    )
    review = tmp_path / "review.csv"
    command = [
        "generate",
        str(source),
        str(review),
        "--keywords",
        str(tmp_path / "keywords.txt"),
        "--url",
        url,
        "--model",
        "m",
    ]
    assert augment.main([*command, "--dry_run"]) == 0
    assert "키워드: 강마루 찍힘\n" in capsys.readouterr().out
    assert not asked
    assert augment.main(command) == 2, "the third question is like the second"
    assert asked[0][:2] == ("/v1/chat/completions", "Bearer canary-key")
    rows = read(review)
    assert [rows[0][name] for name in wallpaper.ANSWERS] == [
        "하나입니다.",
        "둘입니다.",
        "셋",
        "넷",
        "다섯",
    ]
    assert {row["generated"] for row in rows} == {"model"}
    assert all(b"canary-key" not in file.read_bytes() for file in tmp_path.iterdir())
    before = len(asked)
    with (tmp_path / "review.journal.jsonl").open("ab") as journal:
        journal.write('{"key": "가'.encode()[:-1])
    augment.main(command)
    assert len(asked) == before, "what was said is not asked again"
    augment.main([*command[:-1], "another"])
    assert len(asked) > before, "another model is"
    augment.main(command)
    with pytest.raises(InputError, match="is a review"):
        wallpaper.read([review], need_answers=True)
    with pytest.raises(InputError, match="is no review"):
        augment.main(["generate", str(source), str(source), *command[3:]])
    with pytest.raises(InputError, match="no row whose accept is y"):
        augment.main(["accept", str(review), str(tmp_path / "out.csv")])
    review.write_text(
        review.read_text(encoding="utf-8-sig").replace("강마루 찍힘,\n", "강마루 찍힘,y\n"),
        encoding="utf-8",
    )
    assert augment.main(["accept", str(review), str(tmp_path / "out.csv")]) == 1
    table = wallpaper.read([source, tmp_path / "out.csv"], need_answers=True)
    assert table.rows[-1].fields["generated"] == "model"
    with pytest.raises(InputError, match="has been reviewed in part"):
        augment.main(command)


def test_a_local_model_writes_too(source, tmp_path):
    (tmp_path / "doc.txt").write_text("벽지는 습기에 약하다.", encoding="utf-8")
    command = [
        "generate",
        str(source),
        str(tmp_path / "r.csv"),
        "--from",
        str(tmp_path / "doc.txt"),
        "--recipe",
        "wallpaper-demo",
    ]
    augment.main(command)
    assert (tmp_path / "r.journal.jsonl").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "either --keywords"),
        (["--keywords", "nowhere.txt"], "cannot be read"),
        (["--keywords", "train.csv"], "name one model"),
        (
            ["--keywords", "train.csv", "--url", "http://127.0.0.1:9/v1"],
            "did not answer as a chat endpoint",
        ),
    ],
)
def test_what_cannot_be_generated_is_told(source, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        augment.main(["generate", "train.csv", "r.csv", *more])


def test_a_file_that_exists_is_kept(source, tmp_path):
    with pytest.raises(InputError, match="exists already"):
        augment.main(["pairs", str(source), str(source)])
