import errno
import io
import subprocess
import sys

import pytest

from nerve_fast.cli.main import main
from nerve_fast.cli.streams import Stream, steady

PLAN = [sys.executable, "-m", "nerve_fast", "plan", "--tokens", "1024", "--labels", "3"]


class Broken(io.StringIO):
    """A stream on which everything fails."""

    def __init__(self, error):
        super().__init__()
        self.failure = error

    def write(self, text):
        raise self.failure


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(encoding):
    raw = io.BytesIO()
    stream = Stream(io.TextIOWrapper(raw, encoding=encoding), kept="\n")
    stream.write("größe → 名前 \udcff\x1b[2J\n")
    stream.flush()
    said = raw.getvalue().decode(encoding)
    assert r"\udcff\x1b[2J" in said
    assert said.endswith("\n")
    assert ("→" in said) == (encoding == "utf-8")
    assert (r"\u2192" in said) == (encoding != "utf-8")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE, errno.EBADF])
def test_the_first_error_ends_the_words_and_not_the_work(number):
    stream = Stream(Broken(OSError(number, "no")))
    for _ in range(2):
        assert stream.write("words") == 5
        stream.flush()
    assert stream.error.errno == number


def test_a_closed_stream_says_nothing():
    for closed in (None, io.StringIO()):
        if closed is not None:
            closed.close()
        stream = Stream(closed)
        stream.write("words")
        stream.flush()
        assert stream.error is None
        assert not Stream(None).isatty()


def test_streams_are_put_back(capsys):
    before = sys.stdout, sys.stderr
    with steady():
        print("a", end="")
    assert (sys.stdout, sys.stderr) == before
    with pytest.raises(SystemExit):
        main(["--help"])
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out.startswith("ausage: nerve-fast")


def test_a_full_disk_is_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Broken(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["plan", "--tokens", "1024", "--labels", "3"]) == 2
    said = capsys.readouterr().err
    assert said == "nerve-fast: what it says cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("shell", "code"), [(">/dev/full", 2), (">&-", 0), ("2>&-", 0), ("2>/dev/full", 0), ("<&-", 0)]
)
def test_a_command_ends_as_it_should_whatever_its_streams_are(shell, code):
    command = " ".join(PLAN) + " " + shell
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_messages_hold_no_control_characters(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\nb.json"
    path.write_text("{}")
    assert main(["report", str(path)]) == 2
    said = capsys.readouterr().err
    assert r"a\x1b[31m\nb.json" in said
    assert said.count("\n") == 1
