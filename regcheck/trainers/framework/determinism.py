"""Threads and determinism: the one place where they are set, and the versions numbers depend on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from threadpoolctl import threadpool_limits

SMALL = 2**18
"""Multiplications in a pass below which one thread is faster than handing work to several."""


@contextmanager
def torch_settings(multiplications: int) -> Iterator[int]:
    """Set threads and determinism for one training, and put them back; gives the threads.

    A pass over the rows that takes few multiplications runs on one thread, so that it does not
    pay for handing work to others. Larger ones keep torch's own number, and NumPy's BLAS gets one
    thread: the sides take turns, and two pools whose idle threads wait busily hold each other up
    (measured: four times slower).
    """
    small = multiplications < SMALL
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1 if small else threads)
    # As use_deterministic_algorithms(True), which imports torch's compiler: a second more.
    torch.set_deterministic_debug_mode("error")
    try:
        # A small pass stays below the size from which BLAS uses threads at all.
        with torch.enable_grad(), nullcontext() if small else threadpool_limits(1, "blas"):
            yield torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(mode)


def environment() -> dict[str, str]:
    """Return the versions that numbers depend on."""
    return {"numpy": np.__version__, "torch": str(torch.__version__)}
