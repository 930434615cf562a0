"""Test that files and folders are written whole, safely, and verified."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dandap import manifest
from dandap.errors import InputError
from dandap.files import (
    append_json,
    check_writable,
    checked_name,
    existing_parent,
    free_folder,
    locked,
    new_folder,
    read_json,
    refuse_existing,
    refuse_output,
    whole_folder,
    write_text,
)
from dandap.manifest import fault, folder_hash, seal


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_links_are_replaced_and_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("a.json", ".a.json.partial", "b.jsonl", ".lock"):
        (tmp_path / name).symlink_to(precious)
    write_text(tmp_path / "a.json", "ours")
    assert (tmp_path / "a.json").read_text() == "ours"
    with pytest.raises(InputError, match="is a link"):
        append_json(tmp_path / "b.jsonl", {})
    with pytest.raises(InputError, match="is a link"), locked(tmp_path):
        pass
    assert precious.read_text() == "mine"


def test_users_partial_files_stay(tmp_path):
    (tmp_path / "out.csv.partial").write_text("mine")
    write_text(tmp_path / "out.csv", "ours")
    assert (tmp_path / "out.csv.partial").read_text() == "mine"
    assert names(tmp_path) == ["out.csv", "out.csv.partial"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "x")
    assert not names(tmp_path)


def test_a_lock_is_held_once_and_names_its_process(tmp_path):
    in_use = pytest.raises(InputError, match=f"in use by process {os.getpid()}")
    with locked(tmp_path), in_use, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_appears_whole(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["file"]
    with pytest.raises(InputError, match="made by something else"), whole_folder(tmp_path / "a"):
        pass
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "b"):
        _ = 1 / 0
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_folders_of_killed_processes_are_removed(tmp_path):
    code = """import sys, time; from pathlib import Path; from dandap.files import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / 'file').touch(); print('writing', flush=True); time.sleep(60)"""
    command = [sys.executable, "-c", code, str(tmp_path / "merged")]
    (tmp_path / ".merged.mine.partial").mkdir()  # a user's: it has no lock
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with whole_folder(tmp_path / "merged"):
            assert len(names(tmp_path)) == 3, "it is being written to"
        writer.send_signal(signal.SIGKILL)
    (tmp_path / "merged").rmdir()
    with whole_folder(tmp_path / "other"):
        assert len(names(tmp_path)) == 3, "another folder's"
    with whole_folder(tmp_path / "merged"):
        assert len(names(tmp_path)) == 3
    assert names(tmp_path) == [".merged.mine.partial", "merged", "other"]


def test_paths_that_cannot_be_folders(tmp_path):
    place = tmp_path / "out"
    for target in (None, tmp_path / "nowhere", place):
        place.write_text("x") if target is None else place.symlink_to(target)
        with pytest.raises(InputError, match="is a file|is a link that leads nowhere"):
            check_writable(place / "a", "Name another.")
        for make in (new_folder, lambda parent, name: free_folder(parent / name)):
            with pytest.raises((InputError, OSError)):
                make(place, "a")
        place.unlink()


def test_the_nearest_parent_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert existing_parent(Path("a/b")) == tmp_path
    assert existing_parent(tmp_path) == tmp_path


def test_outputs_that_cannot_be_written(tmp_path):
    target = tmp_path / "out.csv"
    for make, message in (
        (lambda: target.symlink_to("elsewhere"), "is a link"),
        (lambda: os.mkfifo(target), "is a device or a pipe"),
        (lambda: target.write_text("x"), "exists already. Choose another name, or add --over"),
    ):
        make()
        with pytest.raises(InputError, match=f"^--output {target} {message}"):
            refuse_output(str(target), overwrite=False)
        target.unlink()
    with pytest.raises(InputError, match="is a folder"):
        refuse_output(str(tmp_path), overwrite=True)
    with pytest.raises(InputError, match="there is no folder"):
        refuse_output(str(tmp_path / "a" / "b"), overwrite=True)
    target.write_text("x")
    refuse_output(str(target), overwrite=True)
    with pytest.raises(InputError, match=f"^OUT {target} exists already. Choose another.$"):
        refuse_existing(target, False, "OUT", "Choose another.")


def test_names_longer_than_a_file_system_takes(tmp_path):
    with pytest.raises(InputError, match="has 300 bytes; expected at most 180"):
        checked_name("가" * 100)
    with pytest.raises(InputError, match="has more than the 255 bytes"):
        refuse_output(str(tmp_path / ("시" * 90)), overwrite=False)
    assert new_folder(tmp_path, "시" * 90).is_dir(), "a test file's name is cut"


def test_damaged_json(tmp_path):
    for text, message in (("{", "is damaged"), ("[]", "expected a JSON object")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="is missing"):
        read_json(tmp_path / "nowhere.json")


def test_a_manifest_detects_damage(tmp_path):
    assert "no manifest" in fault(tmp_path)
    (tmp_path / "rows.arrow").write_text("x")
    seal(tmp_path, "this run")
    assert fault(tmp_path) == "its manifest names no weights"
    assert fault(tmp_path, weights=False) is None
    assert fault(tmp_path, "this run", weights=False) is None
    assert fault(tmp_path, "another", weights=False) == "it is another run's"
    (tmp_path / "rows.arrow").write_text("y")
    assert "is damaged" in fault(tmp_path, weights=False)
    (tmp_path / "rows.arrow").write_text("xy")
    assert "has 2 bytes instead of 1" in fault(tmp_path, weights=False)
    (tmp_path / "rows.arrow").unlink()
    assert "is missing" in fault(tmp_path, weights=False)
    (tmp_path / "manifest.json").write_text("[]")
    assert "cannot be read" in fault(tmp_path, weights=False)


def test_large_weights_are_hashed_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "WHOLE", 1000)
    monkeypatch.setattr(manifest, "PIECE", 10)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(range(256)) * 100)
    before = folder_hash(tmp_path)
    file.write_bytes(bytes(255 - n for n in range(256)) * 100)
    assert folder_hash(tmp_path) != before


def test_sealing_works_on_windows(tmp_path, monkeypatch):
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
