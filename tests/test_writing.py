"""Files are written whole or not at all: full disks, interruptions and kills leave the old one."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from regcheck.errors import UsageError
from regcheck.writing import write_whole
from tests.conftest import ROOT, SMALL

OLD = "what stood there before"


def left(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_text_and_bytes_are_written_and_the_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_whole(path, ["λ", b"\xff", "\udc80"])
    assert path.read_bytes() == "λ".encode() + b"\xff" + b"\\udc80"
    path.chmod(0o640)
    write_whole(path, ["new"])
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o640)
    assert left(tmp_path) == ["a.txt"]


def test_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text(OLD)
    link.symlink_to(target)
    write_whole(link, ["new"])
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("planted"), KeyboardInterrupt()], ids=repr)
def test_what_breaks_off_leaves_the_old_file_alone(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(OLD)

    def chunks() -> Iterator[str]:
        yield "half"
        raise error

    with pytest.raises(type(error)):
        write_whole(path, chunks())
    assert path.read_text() == OLD
    assert left(tmp_path) == ["a.txt"]


def test_missing_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file or directory"):
        write_whole(tmp_path / "nowhere" / "a.txt", ["new"])


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from regcheck.cli import exit_code
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(exit_code(["run", "--quiet", sys.argv[1], "--report", sys.argv[2]]))
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from regcheck.writing import write_whole
def chunks():
    yield "half" * 100_000
    os.kill(os.getpid(), signal.SIGKILL)
write_whole(Path(sys.argv[2]), chunks())
"""

TERMINATED = """
import os, signal, sys
from regcheck.cli import main
from regcheck.report.files.writing import FORMATS
def chunks(records):
    yield "half" * 100_000
    for _ in range(2):  # as `timeout` does
        os.kill(os.getpid(), signal.SIGTERM)
FORMATS[".json"] = chunks
sys.argv[1:] = ["run", "--quiet", sys.argv[1], "--report", sys.argv[2]]
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits and signals")
@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (FULL, 2, "report.json: cannot be written: File too large"),
        (KILLED, -signal.SIGKILL, ""),
        (TERMINATED, 130, "interrupted"),
    ],
)
def test_full_disk_or_a_signal_leaves_the_old_report(
    source: str, code: int, says: str, tmp_path: Path
) -> None:
    spec, report = tmp_path / "spec.yaml", tmp_path / "report.json"
    spec.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    report.write_text(OLD)
    done = subprocess.run(
        [sys.executable, "-B", "-c", source, str(spec), str(report)],  # no compiled file is cut off
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert report.read_text() == OLD
    assert says in done.stderr
    if code > 0:
        assert left(tmp_path) == ["report.json", "spec.yaml"]
