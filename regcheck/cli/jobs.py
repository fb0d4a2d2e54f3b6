"""Several specs at once: each worker process runs one spec after the other, and hands over results.

Each has a pool of its own, so that of a worker that dies it is known what it ran; another takes its
place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from regcheck.cli.exit_codes import UNUSABLE
from regcheck.cli.one_run import Finished, Wanted, failed, load_trainers, run_spec

DIED = (
    "the process that ran it has ended, killed by the system (perhaps memory ran out) or by the "
    "code that it ran; `--jobs 1` shows more"
)


def run_specs(
    paths: Sequence[Path], wanted: Wanted, jobs: int, ended: Callable[[Finished], None]
) -> Iterator[Finished]:
    """Run specs, so many at once, and yield what comes of them in their order.

    `ended` is called with each as soon as it is there.
    """
    done: dict[int, Finished] = {}
    following = 0
    for place, finished in run_unordered(paths, wanted, min(jobs, len(paths))):
        ended(finished)
        done[place] = finished
        while following in done:
            yield done.pop(following)
            following += 1


def run_unordered(
    paths: Sequence[Path], wanted: Wanted, jobs: int
) -> Iterator[tuple[int, Finished]]:
    """Run specs, so many at once, and yield what comes of each as soon as it is there."""
    waiting = list(enumerate(paths))[::-1]
    running: dict[Future[Finished], tuple[int, ProcessPoolExecutor]] = {}
    with ExitStack() as pools:

        def start(pool: ProcessPoolExecutor) -> None:
            if waiting:
                place, path = waiting.pop()
                running[pool.submit(run_in_worker, path, wanted)] = place, pool

        for _ in range(jobs):
            start(new_worker(pools))
        while running:
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ended:
                place, pool = running.pop(future)
                try:
                    found = future.result()
                except BrokenProcessPool:
                    found = failed(paths[place], UNUSABLE, f"{paths[place]}: {DIED}")
                    pool = new_worker(pools)
                start(pool)
                yield place, found


def new_worker(pools: ExitStack) -> ProcessPoolExecutor:
    """Start a process that is ready to run specs."""
    pool = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=prepare
    )
    pools.callback(end, pool)
    return pool


def end(pool: ProcessPoolExecutor) -> None:
    """End a worker, whatever it does: all is done, or interrupted, or nobody takes any more.

    It is waited for: one that outlived this process would hold its standard output open, and who
    reads that would wait for ever. Killed, since taking torch down would take a third of a second.
    """
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(cancel_futures=True)


def run_in_worker(path: Path, wanted: Wanted) -> Finished:
    """Run one spec; what it has printed is written before the worker may be ended."""
    found = run_spec(path, wanted, progress=False)
    sys.stdout.flush()
    sys.stderr.flush()
    return found


def prepare() -> None:
    """Prepare a worker: an interrupt is for the process that waits for it, and ends it then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    load_trainers()


def end_with_parent() -> None:
    """End this worker where the process that waits for it is killed and can end nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)  # os._exit is the guard's while a user's code runs
