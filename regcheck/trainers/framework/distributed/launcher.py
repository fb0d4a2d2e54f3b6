"""torch's elastic launcher, which starts the ranks on this machine: its command, log and end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from regcheck.errors import ProcessError, one_line

GRACE = 3
"""Seconds that a process has to leave by itself, before it is made to."""

LAST_LINES = 6
"""Lines of what a process printed that an error shows."""

WORKER = "regcheck.trainers.framework.distributed.worker"

OTHERS = re.compile(
    r"PET_|TORCHELASTIC_|TORCH_ELASTIC|MASTER_|GROUP_|ROLE_|LOCAL_|(RANK|WORLD_SIZE)$"
)
"""Variables of a launcher that may have started regcheck itself."""


class Launcher:
    """A process of torch.distributed.run, with R ranks below it."""

    def __init__(self, count: int, folder: Path, arguments: Sequence[str], key: str) -> None:
        """Start it.

        Args:
            count: the ranks.
            folder: a private folder, where all that is printed goes.
            arguments: those of each rank.
            key: what each rank finds in its environment as `KEY`.

        Raises:
            OSError: no process can be started.
        """
        self.count, self.folder, self.log = count, folder, folder / "launcher.log"
        self.port = os.environ.get("MASTER_PORT") or "0"  # which is any free one
        options = {
            "nnodes": "1",
            "nproc-per-node": str(count),
            "max-restarts": "0",
            "rdzv-backend": "c10d",
            "rdzv-endpoint": f"127.0.0.1:{self.port}",
            "rdzv-conf": "is_host=1",  # so that a taken port is an error
            "rdzv-id": "regcheck",
            "local-addr": "127.0.0.1",  # so that no host name is looked up
            "shutdown-timeout": str(GRACE),
            "log-dir": str(folder),
            "redirects": "3",  # of each rank's standard output and error, to files there
        }
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "-m", WORKER, *arguments],
                env=environment(os.environ, folder) | {KEY: key},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches regcheck alone, which ends the others
            )

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, and its ranks with it."""
        return self.process.poll() is not None

    def leaves(self, seconds: float = GRACE) -> bool:
        """Wait for it to end by itself; whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.has_ended

    def end(self) -> None:
        """End it: on its way it ends its ranks, and kills those that do not end."""
        self.process.terminate()
        if not self.leaves(2 * GRACE):
            self.process.kill()
            self.process.wait()

    def exit_codes(self) -> dict[int, int]:
        """Return the exit codes of the ranks that failed, as it prints them; −n for signal n."""
        entry = r"^ *rank +: (\d+) .*\n *exitcode +: (-?\d+) "
        found = re.findall(entry, text_of(self.log), flags=re.MULTILINE)
        return {int(rank): int(code) for rank, code in found}

    def printed(self, rank: int) -> list[str]:
        """Return the last lines that a rank wrote to its standard error."""
        files = self.folder.glob(f"*/attempt_0/{rank}/stderr.log")
        return [line for file in files for line in last_lines(file)]

    def rank_error(self, rank: int, moment: str) -> ProcessError:
        """Make the error that a rank has ended."""
        self.leaves(3 * GRACE)  # it says how, once the other ranks have ended
        how, code = "has ended", self.exit_codes().get(rank)
        todo = "Run it again; without `processes`, one process does the same training."
        if code is not None and code < 0:
            how = f"was ended by signal {-code} ({signal.Signals(-code).name})"
            if code == -signal.SIGKILL:
                todo = "The system kills processes when memory runs out: use fewer processes."
        elif code is not None:
            how = f"ended with exit code {code}"
        what = f"rank {rank} of {self.count} {how} {moment}, and the others were stopped"
        return process_error(what, self.printed(rank), todo)

    def start_error(self) -> ProcessError:
        """Make the error that it has ended before its ranks were there."""
        if "EADDRINUSE" in text_of(self.log):
            what = f"port {self.port}, which the environment's MASTER_PORT names, is in use"
            return process_error(
                what, todo="Unset it, so that any free port is used, or set another."
            )
        failed = list(self.exit_codes())
        if failed:  # it prints last which was the first
            return self.rank_error(failed[-1], "at the start")
        ended = f"torch's launcher ended with exit code {self.process.returncode}"
        what = f"{ended} before the {self.count} ranks had started"
        todo = "`python -m torch.distributed.run` must work here; one process does without it."
        return process_error(what, last_lines(self.log), todo)


KEY = "REGCHECK_KEY"
"""The environment variable in which a rank finds its key to the connection."""


def environment(own: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of the launcher and its ranks, by that of this process."""
    kept = {name: value for name, value in own.items() if not OTHERS.match(name)}
    loopback = [name for _, name in socket.if_nameindex() if re.fullmatch(r"lo\d*", name)]
    return kept | {
        "OMP_NUM_THREADS": "1",
        # They find the very modules that are imported here.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "TMPDIR": str(folder),
        **({"GLOO_SOCKET_IFNAME": loopback[0]} if loopback else {}),
    }


def process_error(what: str, printed: Sequence[str] = (), todo: str = "") -> ProcessError:
    """Make an error: what is wrong, the last lines that a process printed, and what to do."""
    told = ", and it printed last" if printed else ""
    lines = [f"framework.processes: {what}{told}", *(f"    {one_line(line)}" for line in printed)]
    return ProcessError("\n".join([*lines, f"  {todo}"] if todo else lines))


def text_of(file: Path) -> str:
    """Return what a file holds."""
    return file.read_text(encoding="utf-8", errors="replace")


def last_lines(file: Path) -> list[str]:
    """Return the last lines of a file that hold anything."""
    return [line for line in text_of(file).splitlines() if line.strip()][-LAST_LINES:]
