"""Test that files and folders are written atomically, safely, and verified."""

import os
import signal
import subprocess
import sys

import pytest

from dandap.errors import InputError
from dandap.files import (
    append_json,
    atomic_folder,
    check_output,
    find_damage,
    locked,
    new_folder,
    read_json,
    safe_name,
    write_manifest,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_links_are_replaced_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    for name in ("a.json", ".a.json.partial", "b.jsonl", ".lock"):
        (tmp_path / name).symlink_to(target)
    write_text(tmp_path / "a.json", "ours")
    assert (tmp_path / "a.json").read_text() == "ours"
    with pytest.raises(InputError, match="is a link"):
        append_json(tmp_path / "b.jsonl", {})
    with pytest.raises(InputError, match="is a link"), locked(tmp_path):
        pass
    assert target.read_text() == "mine"


def test_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "x")
    assert not names(tmp_path)


def test_lock_is_exclusive_and_names_its_process(tmp_path):
    in_use = pytest.raises(InputError, match=f"in use by process {os.getpid()}")
    with locked(tmp_path), in_use, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_atomic_folder(tmp_path):
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"]
    with (
        pytest.raises(InputError, match="created by another process"),
        atomic_folder(tmp_path / "a"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "b"):
        _ = 1 / 0
    assert names(tmp_path) == ["a"]


def test_folders_of_killed_processes_are_removed(tmp_path):
    code = """import sys, time; from pathlib import Path; from dandap.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / 'file').touch(); print('writing', flush=True); time.sleep(60)"""
    command = [sys.executable, "-c", code, str(tmp_path / "merged")]
    (tmp_path / ".merged.mine.partial").mkdir()  # without a lock, so not ours
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with atomic_folder(tmp_path / "merged"):
            assert len(names(tmp_path)) == 3, "the other process is writing"
        writer.send_signal(signal.SIGKILL)
    (tmp_path / "merged").rmdir()
    with atomic_folder(tmp_path / "merged"):
        assert len(names(tmp_path)) == 2, "the stale folder was removed"
    assert names(tmp_path) == [".merged.mine.partial", "merged"]


def test_unwritable_outputs_are_rejected(tmp_path):
    target = tmp_path / "out.csv"
    target.symlink_to("elsewhere")
    for path, message in (
        (target, "is a folder, link or device"),
        (tmp_path, "is a folder, link or device"),
        (tmp_path / "a" / "b", "no folder"),
    ):
        with pytest.raises(InputError, match=message):
            check_output(path, overwrite=True)
    target.unlink()
    target.write_text("x")
    check_output(target, overwrite=True)
    with pytest.raises(InputError, match="exists already. Choose another name, or add --over"):
        check_output(target, overwrite=False)


def test_folder_names(tmp_path):
    for name, expected in (("../../etc", "etc"), ("a b/c", "a-b-c"), ("한글-1.2", "한글-1.2")):
        assert safe_name(name) == expected
    for name in ("..", "/", " ", "가" * 100):
        with pytest.raises(InputError, match="expected letters.* at most 180 bytes"):
            safe_name(name)
    assert new_folder(tmp_path, "시" * 90).is_dir(), "long names are shortened"


def test_damaged_json_is_rejected(tmp_path):
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("torn.json", "list.json", "nowhere.json"):
        with pytest.raises(InputError, match=f"{name} is missing or damaged"):
            read_json(tmp_path / name)


def test_manifest_detects_damage(tmp_path):
    assert "no manifest" in find_damage(tmp_path)
    weights = tmp_path / "a.safetensors"
    weights.write_text("x")
    write_manifest(tmp_path, "this run")
    assert find_damage(tmp_path) is None
    assert find_damage(tmp_path, "another") == "it belongs to another run"
    weights.write_text("y")
    assert "is damaged" in find_damage(tmp_path)
    weights.write_text("xy")
    assert "has 2 bytes instead of 1" in find_damage(tmp_path)
    weights.unlink()
    assert "is missing" in find_damage(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert "cannot be read" in find_damage(tmp_path)
