"""Test option parsing, output and exit codes of scripts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dandap.cli import Parser, parse, positive
from dandap.errors import InputError


def run_code(code, shell='exec "$@"', **environment):
    """Run a script in a subprocess and return the completed process."""
    lines = ["from dandap.cli import run_script", "from dandap.errors import InputError"]
    lines += ["import sys", "from pathlib import Path", code, "run_script(main)"]
    return subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", "\n".join(lines)],
        env=os.environ | environment,
        capture_output=True,
    )


def test_invalid_options_are_rejected():
    parser = Parser()
    parser.add_argument("--limit", type=positive)
    parser.add_argument("--by", choices=["f1", "em"])
    for argv, message in (
        (["--limits", "3"], "unknown option '--limits'. Did you mean 'limit'?"),
        (["--limit", "0"], "--limit: got '0', expected a whole number of at least 1"),
        (["--by", "x"], "--by: invalid choice: 'x'"),
    ):
        with pytest.raises(InputError) as error:
            parse(parser, argv)
        assert message in str(error.value)
        assert str(error.value).endswith(" See --help.")


def test_errors_are_printed_in_one_line():
    """Errors that users can fix are printed without a traceback."""
    for code, status, message in (
        ("def main(): raise InputError('got \\x1b[2J')", 2, "error: got \\x1b[2J"),
        ("def main(): raise InputError('x' * 10**7)", 2, "error: xxx"),
        ("def main(): raise OSError(28, '', '/a')", 2, "error: no space left on the disk (/a)"),
        ("def main(): Path('/proc/no').write_text('')", 2, "error: No such file or directory (/p"),
        ("def main(): raise KeyboardInterrupt", 130, "stopped"),
    ):
        process = run_code(code)
        assert process.returncode == status
        assert process.stderr.decode().startswith(message)
        assert process.stderr.count(b"\n") == 1
        assert len(process.stderr) < 5000


@pytest.mark.skipif(sys.platform == "win32", reason="closes numbered streams")
def test_closed_streams(tmp_path):
    code = """def main():
        file = open(Path(DONE), 'w')
        print('a')
        print('b', file=sys.stderr)
        file.write('x')""".replace("DONE", repr(str(tmp_path / "done")))
    for closed in ("2>&-", ">&-", ">&- 2>&- <&-"):
        assert run_code(code, f'exec "$@" {closed}').returncode == 0
        assert (tmp_path / "done").read_text() == "x"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk_on_standard_output():
    process = run_code("def main(): print('a')", 'exec "$@" >/dev/full')
    assert (process.returncode, process.stderr.count(b"\n")) == (2, 1)
    assert process.stderr.startswith(b"error: no space left on the disk (standard output).")


def test_script_continues_after_a_broken_pipe(tmp_path):
    code = """def main():
        for n in range(20000): print('line', n, flush=True)
        Path(DONE).write_text('x')""".replace("DONE", repr(str(tmp_path / "done")))
    process = run_code(code, '"$@" | head -1')
    assert (process.stdout, process.stderr) == (b"line 0\n", b"")
    assert (tmp_path / "done").read_text() == "x"


def test_consoles_that_cannot_encode_a_character():
    code = "def main(): print('가\\u2581\\x1b[2J')"
    for encoding, expected in (("cp949", "가\\u2581"), ("ascii", "\\uac00\\u2581")):
        process = run_code(code, PYTHONIOENCODING=encoding)
        assert process.stdout.decode(encoding).strip() == f"{expected}\\x1b[2J"
