"""Several specs at once: each worker process runs one spec after the other, and hands over results.

Each has a pool of its own, so that of a worker that dies it is known what it ran; another takes its
place.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from regcheck.cli.one_run import UNUSABLE, Finished, Wanted, failed, load_trainers, run_spec

DIED = (
    "the process that ran it has ended, killed by the system (perhaps memory ran out) or by the "
    "code that it ran; `--jobs 1` shows more"
)


def default_jobs() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_specs(paths: Sequence[Path], wanted: Wanted, jobs: int) -> Iterator[Finished]:
    """Run specs, so many at once, and yield what comes of them in their order."""
    if jobs == 1 or len(paths) < 2:
        for path in paths:
            yield run_spec(path, wanted, progress=True)
        return
    done: dict[int, Finished] = {}
    following = 0
    for place, finished in run_unordered(paths, wanted, min(jobs, len(paths))):
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
                running[pool.submit(run_spec, path, wanted, False)] = place, pool

        try:
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
        except BaseException:  # interrupted, or nobody takes any more: no process stays
            for _, pool in running.values():
                for process in list((pool._processes or {}).values()):
                    process.kill()
            raise


def new_worker(pools: ExitStack) -> ProcessPoolExecutor:
    """Start a process that is ready to run specs."""
    pool = ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=prepare
    )
    pools.callback(pool.shutdown, wait=False, cancel_futures=True)
    return pool


def prepare() -> None:
    """Prepare a worker: an interrupt is for the process that waits for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load_trainers()
