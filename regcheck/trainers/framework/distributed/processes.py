"""The processes that share each batch: R ranks, which are asked for one step after the other.

torch's launcher starts them. Each connects to this process by a Unix socket in a private folder.
When this process closes the connections, or is killed, the ranks leave, and so does the launcher.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import secrets
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from regcheck.problem.problem import Problem
from regcheck.rules.words import all_of
from regcheck.trainers.framework.distributed.launcher import GRACE, Launcher, process_error

START_TIMEOUT = 120.0
"""Seconds that all ranks have to start in, at least: each imports torch."""

MORE_TIME = "`--timeout SECONDS` gives them more time."


def send(connection: Connection, value: object) -> None:
    """Send a value; `Connection.send` would move torch's tensors to shared memory."""
    connection.send_bytes(pickle.dumps(value))


def same_socket(connection: Connection) -> socket.socket:
    """Return the socket that a connection is made of, once more."""
    return socket.socket(fileno=os.dup(connection.fileno()))


def limit(connection: Connection, seconds: float) -> None:
    """Let no message stop for so long on its way: BlockingIOError is raised then.

    (A rank that hangs reads no more, and leaves a message half written.)
    """
    span = struct.pack("ll", math.ceil(seconds), 0)
    with same_socket(connection) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, span)


def is_closed(connection: Connection, seconds: float) -> bool:
    """Whether the other end closes a connection within so long, as it does when it is gone."""
    deadline = time.monotonic() + seconds
    try:
        while connection.poll(max(0.0, deadline - time.monotonic())):
            connection.recv_bytes()  # what it still had to say
    except (EOFError, ConnectionError):
        return True
    except BlockingIOError:
        return False
    return False


def receive(connection: Connection) -> Any:
    """Receive a value.

    Raises:
        EOFError: the other end is closed.
    """
    return pickle.loads(connection.recv_bytes())


@contextlib.contextmanager
def processes_of(problem: Problem, timeout: float) -> Iterator[Processes]:
    """Have processes train a problem for as long as the context lasts.

    Args:
        problem: what they train, in as many processes as its schedule says.
        timeout: seconds that a step may take.
    """
    with tempfile.TemporaryDirectory(prefix="regcheck-", ignore_cleanup_errors=True) as folder:
        processes = Processes(problem, timeout, Path(folder))
        try:
            yield processes
        finally:
            processes.close()


class Processes:
    """R ranks of torch.distributed, started once they are asked for something."""

    def __init__(self, problem: Problem, timeout: float, folder: Path) -> None:
        """Take what they train, the seconds that a step may take, and an empty private folder."""
        self.problem, self.timeout, self.folder = problem, timeout, folder
        self.count = problem.schedule.processes
        self.launcher: Launcher | None = None
        self.ranks: dict[int, Connection] = {}
        self.pids: dict[int, int] = {}

    def ask(self, question: object, moment: str) -> list[Any]:
        """Ask all ranks; returns their answers in their order.

        Args:
            question: what `worker` takes.
            moment: when it is, as messages say it, such as `in step 3`.

        Raises:
            ProcessError: the ranks cannot be started; or one has ended, or does not answer.
        """
        launcher = self.launcher or self.started()
        return self.answers(launcher, question, moment, time.monotonic() + self.timeout)

    def answers(
        self, launcher: Launcher, question: object, moment: str, deadline: float
    ) -> list[Any]:
        """Ask all ranks; the answers must be there at a time of the monotonic clock."""
        answers: dict[int, Any] = {}
        try:
            for rank, connection in self.ranks.items():  # noqa: B007 - the error names it
                send(connection, question)
            while len(answers) < self.count:
                waiting = {one: rank for rank, one in self.ranks.items() if rank not in answers}
                ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise late(sorted(waiting.values()), self.count, self.timeout, moment)
                for rank in (waiting[one] for one in ready if isinstance(one, Connection)):
                    answers[rank] = receive(self.ranks[rank])
        except (EOFError, ConnectionError):
            raise launcher.rank_error(rank, moment) from None
        except BlockingIOError:
            raise late([rank], self.count, self.timeout, moment) from None
        return [answers[rank] for rank in sorted(answers)]

    def started(self) -> Launcher:
        """Start the ranks, and give each the problem."""
        deadline = time.monotonic() + max(START_TIMEOUT, self.timeout)
        address, key = str(self.folder / "socket"), secrets.token_bytes(32)
        try:
            listener = Listener(address, "AF_UNIX", backlog=self.count, authkey=key)
        except (OSError, ValueError) as error:  # ValueError: a system without such sockets
            raise process_error(f"cannot be started: {error}") from error
        with accepting(listener, address) as found:
            try:
                launcher = self.launcher = Launcher(self.count, self.folder, [address], key.hex())
            except OSError as error:
                raise process_error(f"cannot be started: {error}") from error
            self.gather(launcher, found, deadline)
        self.answers(launcher, (self.problem, self.timeout), "at the start", deadline)
        return launcher

    def gather(self, launcher: Launcher, found: SimpleQueue[Connection], deadline: float) -> None:
        """Wait until all ranks are there."""
        while len(self.ranks) < self.count:
            with contextlib.suppress(Empty):
                self.admit(found.get(timeout=0.05), deadline)
            if launcher.has_ended:
                raise launcher.start_error()
            if time.monotonic() > deadline:
                missing = [rank for rank in range(self.count) if rank not in self.ranks]
                seconds = max(START_TIMEOUT, self.timeout)
                raise late(missing, self.count, seconds, "at the start")

    def admit(self, connection: Connection, deadline: float) -> None:
        """Take the connection of a rank that says which it is."""
        with contextlib.suppress(EOFError, ConnectionError):  # the launcher will say why
            if connection.poll(max(0.0, deadline - time.monotonic())):
                limit(connection, self.timeout)
                rank, pid = receive(connection)
                self.ranks[rank], self.pids[rank] = connection, pid

    def close(self) -> None:
        """Let the processes leave, or make them."""
        for connection in self.ranks.values():
            with same_socket(connection) as end, contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)  # the rank reads that nothing more will come
        all_there = len(self.ranks) == self.count
        if self.launcher is not None and not (all_there and self.launcher.leaves()):
            self.launcher.end()
        for rank, connection in self.ranks.items():
            if not is_closed(connection, GRACE):  # its launcher was killed, and it hangs
                os.kill(self.pids[rank], signal.SIGKILL)
            connection.close()


@contextlib.contextmanager
def accepting(listener: Listener, address: str) -> Iterator[SimpleQueue[Connection]]:
    """Accept connections in the background, and give them as they come."""
    found: SimpleQueue[Connection] = SimpleQueue()
    enough = threading.Event()

    def accept() -> None:
        while not enough.is_set():
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                found.put(listener.accept())

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        enough.set()
        with socket.socket(socket.AF_UNIX) as knocking, contextlib.suppress(OSError):
            knocking.connect(address)  # so that it waits no longer
        thread.join()
        listener.close()


def late(ranks: Sequence[int], count: int, seconds: float, moment: str) -> Exception:
    """Make the error that ranks have not answered in time."""
    which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {all_of(map(str, ranks))}"
    have = "has" if len(ranks) == 1 else "have"
    what = f"{which} of {count} {have} not answered within {seconds:g} seconds {moment}"
    return process_error(what, todo=MORE_TIME)
