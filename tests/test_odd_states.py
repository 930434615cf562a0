"""Test runs in odd states: broken neighbors, changed bases, unusual data."""

import json
import os
import signal
from argparse import Namespace
from pathlib import Path

import pytest
from dandap.training.stop import StopSignals
from transformers import AutoTokenizer, GPT2Config, LlamaConfig

from dandap.data.checks import drop_too_long, loses_answer
from dandap.data.encode import Example
from dandap.data.rows import Row, Table
from dandap.errors import InputError
from dandap.files import fault, read_json, seal, write_json
from dandap.model import identity
from dandap.model.hub import folder_hash, same_base
from dandap.model.load import check_base, check_ids
from dandap.recipe import make_recipe
from dandap.runs import folder as run_folder
from dandap.runs.folder import RunFolder, check_name, find_run, list_runs, new_run
from dandap.runs.predictions import same_questions
from dandap.training import start
from dandap.training.checkpoints import newest_valid
from prompts import check_template
from tasks import TASKS
from tasks.submission import SubmissionForm, active, inert, submission_form, write_submission
from tools import compare

# --- runs beside one another


def run_at(folder, environment, **recipe):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        make_recipe({"model": "data/demo_model"} | recipe, "test").to_yaml()
    )
    text = environment if isinstance(environment, str) else json.dumps(environment)
    (folder / "environment.json").write_text(text)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_text("x")
    (folder / "template.json").write_text(
        '{"name": "concise", "template": {"user": "{context} {question}"}}'
    )
    return RunFolder(folder)


@pytest.mark.parametrize(
    "broken",
    ["", "null", "[]", '{"finished": ', "\x00", '{"finished": []}', '{"finished": "soon"}'],
)
def test_a_broken_neighbour_is_passed_over_and_named(tmp_path, capsys, broken):
    run_at(tmp_path / "good", {"started": "2026-01-01", "finished": "2026-01-02"})
    run_at(tmp_path / "odd", broken)
    assert find_run(None, str(tmp_path)).path.name == "good"
    assert f"{tmp_path / 'odd'} is passed over: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [("adapter/adapter_model.safetensors", ""), ("template.json", "{"), ("recipe.yaml", "[")],
)
def test_a_broken_newest_run_is_passed_over_and_named(tmp_path, capsys, file, content):
    run_at(tmp_path / "good", {"started": "2026-01-01", "finished": "2026-01-02"})
    run_at(tmp_path / "odd", {"started": "2026-01-03", "finished": "2026-01-04"})
    (tmp_path / "odd" / file).write_text(content)
    assert find_run(None, str(tmp_path)).path.name == "good"
    assert f"{tmp_path / 'odd'} is passed over: " in capsys.readouterr().out


def test_the_newest_run_is_told_where_clock_and_files_disagree(tmp_path, capsys):
    run_at(tmp_path / "old", {"started": "2026-11-25T09", "finished": "2026-11-25T10"})
    run_at(tmp_path / "new", {"started": "1970-01-01T00", "finished": "1970-01-01T01"})
    assert find_run(None, str(tmp_path)).path.name == "old"
    assert (
        "new was written to later and says 1970-01-01T01. If a clock was wrong, name the run"
        in capsys.readouterr().out
    )


def test_runs_are_in_the_order_of_their_starts_wherever_they_were_moved(tmp_path):
    run_at(tmp_path / "b", {"started": "2026-01-02"})
    run_at(tmp_path / "a", {"started": "2026-01-01"})
    assert [run.path.name for run in list_runs(str(tmp_path))] == ["a", "b"]


def test_the_name_of_a_start_that_left_nothing_is_free(tmp_path):
    run = run_at(tmp_path / "mine", {})
    with pytest.raises(InputError, match="exists already"):
        check_name(str(tmp_path), "mine")
    (run.adapter / "adapter_model.safetensors").unlink()
    run.adapter.rmdir()
    check_name(str(tmp_path), "mine")
    assert new_run(str(tmp_path), "mine", "demo").path == run.path
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        check_name(str(tmp_path), "mine")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"name": "concise"}', '{"name": "a", "template": {"user": 1}}']
)
def test_a_damaged_template_is_named(tmp_path, text):
    (tmp_path / "template.json").write_text(text)
    with pytest.raises(InputError, match=r"template.json"):
        RunFolder(tmp_path).load_template()
    with pytest.raises(InputError, match="is missing"):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    "part",
    ["{context:>2000000000}{question}", "{context!r}{question}", "{context.__class__}{question}"],
)
def test_a_templates_field_is_a_name_and_nothing_else(part):
    with pytest.raises(InputError, match="template 'x'"):
        check_template({"user": part}, "x", TASKS["economic_qa"])


def test_another_runs_checkpoint_is_skipped(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("x")
    seal(folder, "this run")
    assert newest_valid(tmp_path, "this run") == (folder, [])
    assert newest_valid(tmp_path, "another") == (
        None,
        ["checkpoint-5 is skipped: it is another run's"],
    )
    assert fault(folder) is None, "an adapter is looked at without a run"


# --- what a run was made with


def changed_run(tmp_path, **before):
    now = run_folder.begin([Table(Path("train.csv"), [], "hash", [])], {"model": "m", "files": "f"})
    run = RunFolder(tmp_path)
    write_json(run.environment_file, now | before)
    return run


def tell(run, monkeypatch, anyway=False):
    monkeypatch.setattr(identity, "base_identity", lambda recipe: {"model": "m", "files": "f"})
    start.tell_what_changed(
        run, make_recipe({}, "test"), Table(Path("train.csv"), [], "hash", []), anyway
    )


def test_the_same_data_base_and_versions_are_resumed_without_a_word(tmp_path, monkeypatch, capsys):
    tell(changed_run(tmp_path), monkeypatch)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"data": {"old.csv": "other"}}, "the data train.csv"),
        ({"base": {"model": "m", "files": "g"}}, "the base"),
    ],
)
def test_other_data_or_another_base_is_refused_and_what_was_insisted_on_is_noted(
    tmp_path, monkeypatch, before, message
):
    run = changed_run(tmp_path, **before)
    with pytest.raises(InputError, match=f"{message}.* changed since .* was started"):
        tell(run, monkeypatch)
    tell(run, monkeypatch, anyway=True)
    (again,) = run.environment()["resumed"]
    assert (again["data"], again["base"]) == ({"train.csv": "hash"}, {"model": "m", "files": "f"})
    assert run.environment() | before == run.environment(), "the old stays"


def test_other_versions_are_told(tmp_path, monkeypatch, capsys):
    packages = run_folder.describe_environment([])["packages"] | {"transformers": "4.0.0"}
    tell(changed_run(tmp_path, packages=packages, commit="deadbeef"), monkeypatch)
    told = capsys.readouterr().out
    assert "and was 4.0.0 when the run started" in told
    assert "and was at deadbeef when the run started" in told


def test_a_bases_files_tell_it_from_another(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_text(name[0] if name != "b" else "a")
    a, b, c = ({"model": name, "files": folder_hash(tmp_path / name)} for name in "abc")
    assert same_base(a, b), "it was moved"
    assert not same_base(a, c)
    assert not same_base({"model": "x", "commit": "1"}, {"model": "x", "commit": "2"})


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained("data/demo_model")


def test_the_bases_limits_are_compared_before_anything_is_loaded(tokenizer, capsys):
    recipe, size = make_recipe({"model": "some/base"}, "test"), len(tokenizer)
    with pytest.raises(
        InputError,
        match="max_length=2048 is more than the 64 positions of some/base: it cannot read further",
    ):
        check_base(recipe, GPT2Config(n_positions=64, vocab_size=size), tokenizer)
    check_base(recipe, LlamaConfig(max_position_embeddings=64, vocab_size=size), tokenizer)
    assert "WARNING: max_length=2048 is more than the 64 positions" in capsys.readouterr().out
    with pytest.raises(InputError, match="they do not belong together"):
        check_base(recipe, LlamaConfig(vocab_size=100), tokenizer)
    check_base(recipe, LlamaConfig(vocab_size=size), tokenizer)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="question a: the token .* has the id 9999"):
        check_ids(
            [Example(Row("a", "", ""), [1, 9999], [])], LlamaConfig(vocab_size=size), tokenizer
        )


def test_what_is_too_long_for_the_memory_plan_is_left_out_by_name(capsys):
    recipe = make_recipe({"max_length": 20, "max_new_tokens": 4}, "test")
    short, long = (Example(Row(str(n), "", ""), [1] * 10, [1] * n) for n in (10, 11))
    assert drop_too_long(recipe, [short, long]) == [short]
    assert (
        "1 questions are left out of training: with their answers (up to 11 tokens)"
        in capsys.readouterr().out
    )
    with pytest.raises(InputError, match="every answer is too long"):
        drop_too_long(recipe, [long])


def test_an_answer_that_trimming_took_is_noticed():
    row = Row("a", "앞 가나다 뒤", "?", ("뒤",))
    assert loses_answer(Example(row, [1], [], trimmed=2, context="앞 가나다"))
    assert not loses_answer(Example(row, [1], [], trimmed=2, context="다 뒤"))
    assert not loses_answer(Example(Row("a", "앞", "?", ("없음",)), [1], [], trimmed=1, context=""))


# --- machines


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_asks_to_stop_unless_it_is_to_be_ignored():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.received is signal.SIGHUP
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_compare_names_an_output_folder_that_leads_nowhere(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"out is a link that leads nowhere. Name another --output_dir"
    ):
        compare.main(["a", "b", "--output_dir", str(tmp_path / "out")])


def test_the_demo_is_found_from_another_folder(tmp_path, monkeypatch):
    """Only what ships with the project is looked for there; other paths are the user's own."""
    bare = Namespace(recipe=None, resume=None, preview=False)
    root = Path(__file__).parent.parent
    here = make_recipe({"model": "data/demo_model", "test_file": "data/sample/test.csv"}, "here")
    assert (here.model, here.test_file) == ("data/demo_model", "data/sample/test.csv")
    monkeypatch.chdir(tmp_path)
    demo = start.choose(bare).recipe
    assert Path(demo.model) == root / "data/demo_model"
    assert Path(demo.train_file) == root / "data/sample/train.csv"
    both = "data/sample/train.csv,data/README.md"
    recipe = make_recipe({"train_file": both, "test_file": "data/README.md"}, "there")
    assert recipe.train_file == f"{root / 'data/sample/train.csv'},data/README.md"
    assert recipe.test_file == "data/README.md"
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "data" / "sample" / "train.csv").touch()
    assert start.choose(bare).recipe.train_file == "data/sample/train.csv", "one's own comes first"


def test_a_project_without_its_demo_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dandap.recipe.ROOT", tmp_path)
    with pytest.raises(InputError, match=r"no data.train.csv here, and .* lacks the demo's data"):
        start.choose(Namespace(recipe=None, resume=None, preview=False))


def test_the_hub_is_asked_once_and_not_for_a_minute(monkeypatch, capsys):
    from dandap.model import hub
    from dandap.model.load import load_tokenizer

    def unreachable(request, timeout):
        assert timeout == hub.HUB_TIMEOUT
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "urlopen", unreachable)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    hub.find_hub.cache_clear()
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(make_recipe({"model": "nobody/nothing"}, "test"))
    assert (
        "cannot be reached (OSError: no route to host): only models already downloaded"
        in capsys.readouterr().out
    )
    hub.find_hub.cache_clear()


# --- words and rows


def test_an_apostrophe_of_the_texts_own_survives_a_review():
    for text in ("'-10도'에서", "-10도", "''=1", "'가'", "가", "'"):
        assert active(inert(text)) == text
    assert inert("'-10도") == "''-10도"


def test_the_sample_is_read_before_anything_is_answered(tmp_path):
    sample, test = tmp_path / "sample_submission.csv", tmp_path / "test.csv"
    forms = (
        "id,answer\nb,x\na,x\n",
        "\ufeff\ufeffid,answer\nb,x\na,x\n",
        "sep=;\nid;answer\nb;x\na;x\n",
        "id,answer,\nb,x,\na,x,\n",
    )
    for text in forms:
        sample.write_text(text, encoding="utf-8")
        assert submission_form(test, ["a", "b"]).order == ("b", "a")
    assert submission_form(Path(f"{tmp_path}/one.csv,{tmp_path}/two.csv"), ["a", "b"]).order == (
        "b",
        "a",
    ), "of a folder"
    sample.write_bytes("id,answer\na,x\nb,x\n".encode("utf-16"))
    form = submission_form(test, ["a", "b"])
    assert (form.columns, form.encoding) == (("id", "answer"), "utf-8-sig")
    assert "is utf-16; the submission is written as UTF-8" in form.note
    sample.write_bytes("ID\t정답\r\na\tx\r\nb\tx\r\n".encode("utf-16"))
    form = submission_form(test, ["a", "b"])
    assert (form.columns, form.order) == (("ID", "정답"), ("a", "b"))
    assert "is not separated by commas; the submission is" in form.note
    for header, message in (
        ("id,id", "expected two different names"),
        ("id, ", "got 2 cells, the header has 1"),
    ):
        sample.write_text(f"{header}\na,x\nb,x\n", encoding="utf-8")
        with pytest.raises(InputError, match=message):
            submission_form(test, ["a", "b"])
    sample.write_bytes(b"id,answer\na,\xff\xff\n")
    with pytest.raises(InputError, match="the byte 0xff"):
        submission_form(test, ["a", "b"])
    sample.unlink()
    (tmp_path / "sampleSubmission.csv").write_text("x")
    assert "'sampleSubmission.csv' beside" in submission_form(test, ["a", "b"]).note


def test_ids_reach_the_submission_as_the_test_file_has_them(tmp_path):
    ids, answers = ["\u1100\u11611", " 2 ", "3\r4"], ["가", "나", "다"]
    write_submission(tmp_path / "s.csv", SubmissionForm(), ids, answers)
    assert '"\u1100\u11611"' in (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    assert '" 2 "' in (tmp_path / "s.csv").read_text(encoding="utf-8-sig")


def test_the_same_ids_on_other_questions_are_not_compared():
    one, other = (
        [{"id": "r0", "prediction": "가", "question": question}] for question in ("왜?", "언제?")
    )
    with pytest.raises(InputError, match="question of r0 is not the same in both"):
        same_questions({"one": one, "other": other})
