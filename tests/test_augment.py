"""tools.augment: pairs, joined questions, and generated ones that a person accepts."""

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
    rows = wallpaper.TASK.read([source, tmp_path / "o.csv"], {}, True).rows
    train, validation = split_by_article(rows, 0.3)
    assert validation
    assert not any(row.fields["generated"] for row in validation)
    held_out = {row.group for row in validation}
    joined = [row for row in train if row.fields["generated"]]
    assert 0 < len(joined) < 60
    assert not any(held_out & set(row.fields["sources"].split()) for row in joined)


@pytest.fixture
def server():
    """Serve an OpenAI-compatible endpoint that asks about a keyword and lists five answers."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            asked.append((self.path, self.headers.get("Authorization"), prompt))
            text = f"질문: {prompt.split('키워드: ')[-1].splitlines()[0]} 어떻게 하나요?"
            if "도배업계" in prompt:
                text = "1. 하나입니다.\n2) '-10도'입니다.\n- 셋\n답변 4: 넷\n5. 다섯\n6. 여섯"
            body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
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


def test_generated_rows_wait_for_a_person(source, tmp_path, server, monkeypatch):
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "canary-key")
    keywords, review, out = (tmp_path / name for name in ("k.txt", "review.csv", "out.csv"))
    keywords.write_text("실리콘 곰팡이\n강마루 찍힘\n강마루 찍힘 자국\n", encoding="cp949")
    command = ["generate", str(source), str(review), "--keywords", str(keywords), "--url", url]
    command += ["--model", "m"]
    assert augment.main(command) == 2, "the third question is similar to the second"
    assert asked[0][:2] == ("/v1/chat/completions", "Bearer canary-key")
    answers = ["하나입니다.", "'-10도'입니다.", "셋", "넷", "다섯"]
    shown = [answers[0], f"'{answers[1]}", *answers[2:]]  # an apostrophe, for spreadsheets
    assert [read(review)[0][name] for name in wallpaper.ANSWERS] == shown
    assert all(b"canary-key" not in file.read_bytes() for file in tmp_path.iterdir())

    before = len(asked)
    with (tmp_path / "review.journal.jsonl").open("ab") as journal:
        journal.write('{"key": "가'.encode()[:-1])
    augment.main(command)
    assert len(asked) == before, "the journal has the answers"
    with pytest.raises(InputError, match="is a review"):
        wallpaper.TASK.read([review], {}, True)
    with pytest.raises(InputError, match="no row with accept y"):
        augment.main(["accept", str(review), str(out)])
    rows = read(review)
    rows[1]["accept"] = "Y"
    with review.open("w", encoding="cp949", newline="") as file:
        csv.writer(file).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    assert augment.main(["accept", str(review), str(out)]) == 1
    row = wallpaper.TASK.read([source, out], {}, True).rows[-1]
    assert row.fields["generated"] == "model"
    assert list(row.answers) == answers


def test_a_local_model_writes_too(source, tmp_path):
    (tmp_path / "doc.txt").write_text("벽지는 습기에 약하다.", encoding="utf-8")
    command = ["generate", str(source), str(tmp_path / "r.csv"), "--from"]
    command += [str(tmp_path / "doc.txt")]
    augment.main([*command, "--recipe", "wallpaper-demo"])
    assert (tmp_path / "r.journal.jsonl").is_file()


def test_input_that_is_rejected(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("id,질문,답변_1\n1,왜?,그래서\n", encoding="utf-8")
    url = "http://127.0.0.1:9/v1"
    for words, message in (
        ("generate train.csv r.csv", "either --keywords"),
        ("generate train.csv r.csv --keywords train.csv", "name one model"),
        (f"generate train.csv r.csv --keywords train.csv --url {url}", "did not answer as a chat"),
        ("pairs train.csv train.csv", "exists already"),
        ("join one.csv r.csv", "two rows to join"),
    ):
        with pytest.raises(InputError, match=message):
            augment.main(words.split())
        assert not (tmp_path / "r.csv").exists()
