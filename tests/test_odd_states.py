"""Test runs and machines in odd states.

These are links, full or read-only places, closed pipes, broken neighbours and other bases.
"""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, LlamaConfig

import fine_tune
from dandap.cli import parse
from dandap.data.encode import Example
from dandap.data.lengths import drop_too_long, loses_answer
from dandap.data.rows import Row, Table
from dandap.errors import InputError
from dandap.files import (
    append_json,
    check_writable,
    checked_name,
    free_folder,
    new_folder,
    read_json,
    refuse_existing,
    refuse_output,
    write_json,
    write_text,
)
from dandap.manifest import fault, seal
from dandap.model import identity
from dandap.model.identity import folder_hash, same_base
from dandap.model.load import check_base, check_ids
from dandap.recipe import load_recipe, make_recipe
from dandap.runs import files, manifest
from dandap.runs import folder as run_folder
from dandap.runs.folder import RunFolder, find_run, list_runs, new_run, refuse_taken
from dandap.runs.predictions import same_questions
from dandap.training import start
from dandap.training.checkpoints import newest_valid
from dandap.training.stop import StopSignals
from prompts import check_template
from tasks import TASKS
from tasks.submission import SubmissionForm, active, inert, submission_form, write_submission
from tools import compare

# --- files and folders


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "a.json").symlink_to(precious)
    (tmp_path / ".a.json.partial").symlink_to(precious)
    write_text(tmp_path / "a.json", "ours")
    assert (precious.read_text(), (tmp_path / "a.json").read_text()) == ("mine", "ours")
    (tmp_path / "b.jsonl").symlink_to(precious)
    with pytest.raises(InputError, match="is a link"):
        append_json(tmp_path / "b.jsonl", {})


def test_a_file_of_the_users_that_ends_in_partial_stays(tmp_path):
    (tmp_path / "out.csv.partial").write_text("mine")
    write_text(tmp_path / "out.csv", "ours")
    assert (tmp_path / "out.csv.partial").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.csv.partial"]


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["dangling", "loop", "file"])
def test_a_folder_that_leads_nowhere_is_refused_and_never_waited_for(tmp_path, kind):
    place = tmp_path / "out"
    if kind == "file":
        place.write_text("x")
    else:
        place.symlink_to(tmp_path / "nowhere" if kind == "dangling" else place)
    for make in (
        lambda: new_folder(place, "a"),
        lambda: free_folder(place / "a"),
        lambda: check_writable(place / "a", "Other."),
    ):
        with pytest.raises((InputError, OSError)):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to("elsewhere"), "is a link"),
        (lambda path: os.mkfifo(path), "is a device or a pipe"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("x"), "exists already"),
    ],
)
def test_where_a_submission_cannot_go(tmp_path, make, message):
    make(tmp_path / "out.csv")
    with pytest.raises(InputError, match=message):
        refuse_output(str(tmp_path / "out.csv"), overwrite=False)


def test_names_longer_than_a_file_system_takes(tmp_path):
    with pytest.raises(InputError, match="has 300 bytes; expected at most 180"):
        checked_name("가" * 100)
    with pytest.raises(InputError, match="has more than the 255 bytes"):
        refuse_output(str(tmp_path / ("시" * 90)), overwrite=False)
    assert new_folder(tmp_path, "시" * 90).is_dir(), "a test file's name is cut"


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
        refuse_taken(str(tmp_path), "mine")
    (run.adapter / "adapter_model.safetensors").unlink()
    run.adapter.rmdir()
    refuse_taken(str(tmp_path), "mine")
    assert new_run(str(tmp_path), "mine", "demo").path == run.path
    (run.checkpoints / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        refuse_taken(str(tmp_path), "mine")


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


def test_large_weights_are_hashed_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("dandap.manifest.WHOLE", 1000)
    monkeypatch.setattr("dandap.manifest.PIECE", 10)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 100)
    before = folder_hash(tmp_path)
    file.write_bytes(bytes(255 - n for n in range(256)) * 100)
    assert folder_hash(tmp_path) != before


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


def test_windows_can_flush_a_checkpoint(tmp_path, monkeypatch):
    """It opens no folder and flushes no read-only handle."""
    real_open, real_flush, read_only = os.open, os.fsync, set()

    def windows_open(path, flags, *more, **named):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        handle = real_open(path, flags, *more, **named)
        (read_only.discard if flags & (os.O_WRONLY | os.O_RDWR) else read_only.add)(handle)
        return handle

    def windows_flush(handle):
        if handle in read_only:
            raise OSError(9, "Bad file descriptor")
        real_flush(handle)

    (tmp_path / "adapter_model.safetensors").write_text("x")
    monkeypatch.setattr(manifest.os, "open", windows_open)
    monkeypatch.setattr(manifest.os, "fsync", windows_flush)
    seal(tmp_path)
    assert fault(tmp_path) is None


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


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="is a link"), files.locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def script(code, tmp_path, **environment):
    """Return (command, environment) of a script that works as ours do, in its own process."""
    lines = [
        "import dandap.startup",
        "from dandap.cli import run_script",
        "from dandap.errors import InputError",
        "from pathlib import Path",
        code,
        "run_script(main)",
    ]
    return [sys.executable, "-c", "\n".join(lines)], os.environ | environment


@pytest.mark.skipif(sys.platform == "win32", reason="closes numbered streams")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&- <&-"])
def test_closed_streams_stop_nothing_and_no_file_takes_their_place(tmp_path, closed):
    done = tmp_path / "done"
    lines = [
        f"  file = open({str(done)!r}, 'w')",
        "  print('a')",
        "  print('b', file=sys.stderr)",
        "  file.write('x')",
    ]
    code = "\n".join(["import sys", "def main():", *lines])
    command, environment = script(code, tmp_path)
    ended = subprocess.run(["bash", "-c", f'exec "$@" {closed}', "bash", *command], env=environment)
    assert ended.returncode == 0
    assert done.read_text() == "x"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_error_changes_no_exit_code(tmp_path):
    command, environment = script("def main(): raise InputError('a')", tmp_path)
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, env=environment, stderr=full).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_ends_in_one_sentence(tmp_path):
    command, environment = script("def main(): print('a')", tmp_path)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no space is left on the disk (standard output).")
    assert ended.stderr.count("\n") == 1


def test_tools_name_their_own_argument(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(
        InputError, match=f"^OUT {tmp_path / 'out'} exists already. Choose another name.$"
    ):
        refuse_existing(tmp_path / "out", False, "OUT", "Choose another name.")


def test_compare_names_an_output_folder_that_leads_nowhere(tmp_path):
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(
        InputError, match=r"out is a link that leads nowhere. Name another --output_dir"
    ):
        compare.main(["a", "b", "--output_dir", str(tmp_path / "out")])


def test_work_goes_on_after_its_reader_has_left(tmp_path):
    done = tmp_path / "done"
    code = (
        "def main():\n  for n in range(20000): print('line', n, flush=True)\n"
        f"  Path({str(done)!r}).write_text('x')"
    )
    command, environment = script(code, tmp_path)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert done.read_text() == "x"


@pytest.mark.parametrize("encoding", ["cp949", "ascii"])
def test_a_console_shows_what_it_can(tmp_path, encoding):
    command, environment = script(
        "def main(): print('가\\u2581\\x1b[2J')", tmp_path, PYTHONIOENCODING=encoding
    )
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert done.stdout.decode(encoding).strip() == (
        "가\\u2581\\x1b[2J" if encoding == "cp949" else "\\uac00\\u2581\\x1b[2J"
    )


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("def main(): raise InputError('got \\x1b[2J')", 2, "error: got \\x1b[2J"),
        ("def main(): raise InputError('x' * 10**7)", 2, "error: xxx"),
        (
            "def main(): raise OSError(28, 'No space left on device', '/a/b')",
            2,
            "error: no space is left on the disk (/a/b)",
        ),
        (
            "def main(): Path('/proc/nowhere').write_text('')",
            2,
            "error: No such file or directory (/proc/nowhere)",
        ),
        ("raise KeyboardInterrupt", 130, "stopped"),
        ("def main(): raise KeyboardInterrupt", 130, "stopped"),
    ],
)
def test_a_script_ends_in_one_sentence(tmp_path, code, status, message):
    command, environment = script(code, tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stderr) < 5000


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


@pytest.mark.parametrize("name", ["compare", "refine", "augment", "explore", "submit"])
def test_a_tool_may_be_started_by_its_path(name, tmp_path):
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, root / "tools" / f"{name}.py", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


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


def test_options_may_have_hyphens():
    arguments = parse(
        fine_tune.command_line(), ["--learning-rate", "1e-4", "--lora-r=8", "--resume-anyway"]
    )
    assert (arguments.learning_rate, arguments.lora_r, arguments.resume_anyway) == (
        "1e-4",
        "8",
        True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "run_name: 2024-13-45\n",
        "extends: 5\n",
        "extends: [demo]\n",
        "epochs: !!int x\n",
        "run_name: !!timestamp x\n",
        "extends: {itself}\n",
        "extends: " + "a" * 300 + "\n",
        (
            "a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
            "choices: [*b, *b, *b, *b, *b, *b, *b]\n"
        ),
        "epochs: [&a [*a]]\n",
    ],
)
def test_odd_yaml_is_told_in_a_sentence(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text.replace("{itself}", str(path)))
    with pytest.raises(InputError) as error:
        load_recipe(str(path), {})
    assert len(str(error.value)) < 1500


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
        ("id, ", "got 'id', expected the columns' names"),
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


@pytest.mark.skipif(sys.platform != "linux", reason="torch knows the setting on Linux alone")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "None"),
    ],
)
def test_the_allocators_setting_is_ours_unless_it_was_given(given, expected):
    kept = {name: value for name, value in os.environ.items() if "ALLOC_CONF" not in name}
    code = "import dandap.startup, os; print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected
