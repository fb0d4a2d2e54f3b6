"""Processes that cannot be started, end or hang: what is said, and that none is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from regcheck import cli
from regcheck.checking import check
from regcheck.errors import ProcessError
from regcheck.problem.batches import Batch
from regcheck.problem.problem import build_problem
from regcheck.spec import from_mapping
from regcheck.trainers.framework.distributed import processes
from regcheck.trainers.framework.distributed.data_parallel import (
    Answer,
    DataParallelTrainer,
    check_alike,
)
from regcheck.trainers.framework.distributed.launcher import (
    OTHERS,
    Launcher,
    environment,
    process_error,
)
from regcheck.trainers.framework.distributed.processes import (
    Processes,
    is_closed,
    limit,
    processes_of,
    send,
)
from tests.conftest import told
from tests.ranks import is_gone, left, spec_of

# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.slow
def test_killed_rank_is_an_error_and_the_others_end(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write_spec: Callable[..., Path],
    started: list[Processes],
) -> None:
    take = DataParallelTrainer.take

    def deadly(self: DataParallelTrainer, batch: Batch) -> Any:
        if batch.step == 3:
            os.kill(started[0].pids[1], signal.SIGKILL)
        return take(self, batch)

    monkeypatch.setattr(DataParallelTrainer, "take", deadly)
    path = write_spec(**spec_of("logistic", 2))

    assert cli.exit_code(["run", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"{path}: framework.processes: rank 1 of 2 was ended by signal 9 (SIGKILL) in step 3, and "
        "the others were stopped\n"
        "  The system kills processes when memory runs out: use fewer processes.\n"
    )
    assert left(started) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_rank_that_raises_is_an_error_with_what_it_printed(started: list[Processes]) -> None:
    problem = build_problem(from_mapping(spec_of("logistic", 2)))
    with processes_of(problem, 20.0) as ranks, pytest.raises(ProcessError) as error:
        ranks.ask((0, None, "no batch"), "in step 7")
    first, *lines = str(error.value).splitlines()
    assert "of 2 ended with exit code 1 in step 7, and the others were stopped" in first
    assert "    AttributeError: 'str' object has no attribute '_replace'" in lines
    assert lines[-1].startswith("  Run it again; ")
    assert left(started) == []


@pytest.mark.slow
def test_taken_port_is_an_error(monkeypatch: pytest.MonkeyPatch, started: list[Processes]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(ProcessError, match=rf"port {port}, which .* MASTER_PORT .*, is in use"):
            check(spec_of("logistic", 2))
    assert left(started) == []


@pytest.mark.exhaustive
@pytest.mark.slow
def test_processes_leave_when_regcheck_is_killed(write_spec: Callable[..., Path]) -> None:
    path = write_spec(**spec_of("logistic", 2, epochs=10_000))
    command = [sys.executable, "-m", "regcheck", "run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as regcheck:
        ranks: list[int] = []
        while len(ranks) < 2 and regcheck.poll() is None:
            time.sleep(0.1)
            ranks = [pid for pid in ranks_of(regcheck.pid) if pid != regcheck.pid]
        regcheck.kill()
    assert len(ranks) >= 2
    assert all(map(is_gone, ranks))


def ranks_of(pid: int) -> list[int]:
    """Return a process's descendants, if the system tells of them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("the system has no /proc")
    found = [int(child) for child in children.read_text().split()]
    return found + [pid for child in found for pid in ranks_of(child)]


def test_connection_is_closed_once_its_other_end_is() -> None:
    ours, theirs = Pipe()
    theirs.send_bytes(b"something still unread")
    assert not is_closed(ours, 0.0)
    theirs.send_bytes(b"and more")
    theirs.close()
    assert is_closed(ours, 1.0)
    ours.close()


@pytest.mark.slow
def test_message_that_nobody_reads_does_not_wait_for_ever() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        limit(ours, 0.1)
        with pytest.raises(BlockingIOError):
            send(ours, bytes(10**7))
        theirs.send_bytes(b"x")
        assert ours.poll(1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher_too", [False, True], ids=["alone", "without a launcher"])
def test_rank_that_hangs_is_an_error(started: list[Processes], launcher_too: bool) -> None:
    problem = build_problem(from_mapping(spec_of("logistic", 2)))
    [batch, *_] = problem.schedule.batches()
    with processes_of(problem, 2.0) as ranks:
        ranks.ask((0, None, batch), "in step 1")
        os.kill(ranks.pids[1], signal.SIGSTOP)
        if launcher_too:
            told(ranks.launcher).process.kill()
        with pytest.raises(ProcessError, match="not answered within 2 seconds in step 2"):
            ranks.ask((0, None, batch), "in step 2")
    assert left(started) == []


@pytest.mark.parametrize(
    ("executable", "message"),
    [
        ("/nowhere/python", "framework.processes: cannot be started: .*No such file"),
        ("false", "torch's launcher ended with exit code 1 before the 2 ranks had started"),
    ],
)
def test_launcher_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, executable: str, message: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ProcessError, match=message):
        check(spec_of("logistic", 2))


def test_ranks_that_do_not_come_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, started: list[Processes]
) -> None:
    (tmp_path / "sleeps").write_text("#!/bin/sh\nexec sleep 60\n", encoding="utf-8")
    (tmp_path / "sleeps").chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "sleeps"))
    monkeypatch.setattr(processes, "START_TIMEOUT", 0.2)
    problem = build_problem(from_mapping(spec_of("logistic", 2)))
    message = r"ranks 0 and 1 of 2 have not answered within 0\.2 seconds at the start"
    with processes_of(problem, 0.1) as ranks, pytest.raises(ProcessError, match=message):
        ranks.ask(None, "in step 1")
    assert left(started) == []


def test_error_says_what_where_and_what_to_do() -> None:
    error = process_error("rank 1 is gone", ["a\x1b[31m", "b"], "Do this.")
    assert str(error) == (
        "framework.processes: rank 1 is gone, and it printed last\n"
        "    a\\x1b[31m\n    b\n  Do this."
    )


def test_exit_codes_are_read_from_the_launchers_report(tmp_path: Path) -> None:
    log = tmp_path / "launcher.log"
    report = "  rank      : {} (local_rank: 0)\n  exitcode  : {} (pid: 7)  (SIGTERM)\n"
    log.write_text(report.format(0, -15) + "----\n" + report.format(1, 1), encoding="utf-8")
    one = object.__new__(Launcher)
    one.log = log
    assert one.exit_codes() == {0: -15, 1: 1}


def test_environment_has_nothing_of_another_launcher(tmp_path: Path) -> None:
    own = {"RANK": "3", "PET_NNODES": "2", "MASTER_PORT": "1", "LOCAL_RANK": "0", "HOME": "/h"}
    found = environment(own, tmp_path)
    assert not [name for name in found if OTHERS.match(name)]
    assert found["HOME"] == "/h"
    assert found["OMP_NUM_THREADS"] == "1"
    assert set(filter(None, sys.path)) == set(found["PYTHONPATH"].split(os.pathsep))


def test_a_rank_with_other_parameters_is_an_error() -> None:
    one = Answer(None, 0.5, b"same", None)
    check_alike([one, one], "in step 2")
    with pytest.raises(ProcessError, match="rank 1 has other parameters than rank 0 in step 2"):
        check_alike([one, one._replace(digest=b"other"), one], "in step 2")
