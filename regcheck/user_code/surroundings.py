"""What a user's code finds around it, and regcheck gets back afterwards.

Streams, paths, modules and modes are swapped: what the code changes is there again at its next
call, and never in regcheck or in another user's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from regcheck.user_code.own_modules import Modules

SWAPPED: tuple[tuple[dict[str, Any], str], ...] = (
    (vars(sys), "stdout"),
    (vars(sys), "__stdout__"),
    (vars(sys), "stderr"),
    (vars(sys), "stdin"),
    (vars(sys), "__stdin__"),
    (vars(sys), "argv"),
    (vars(sys), "path"),
    (vars(sys), "dont_write_bytecode"),
    (vars(os), "_exit"),
    (vars(warnings), "filters"),
    (vars(warnings), "showwarning"),
)
"""Names that the code has its own of."""


class ToStandardError(io.RawIOBase):
    """A stream to regcheck's standard error that the code may close or wrap."""

    def __init__(self) -> None:
        self.target: Any = None

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes to whatever regcheck's standard error is."""
        if self.target is not None:
            self.target.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def fileno(self) -> int:
        """Give standard error's file descriptor."""
        if self.target is None:
            raise io.UnsupportedOperation("fileno")
        return int(self.target.fileno())

    def isatty(self) -> bool:
        """Say whether standard error is a terminal."""
        return self.target is not None and self.target.isatty()


class Surroundings:
    """Swaps what the code finds around it in and out."""

    def __init__(self, modules: Modules | None = None, argv: list[str] | None = None) -> None:
        self.raw = ToStandardError(), ToStandardError()
        # Held here too: a stream that the code replaces must not close what it wrote to.
        self.streams = out, error = text_stream(self.raw[0]), text_stream(self.raw[1])
        empty = io.TextIOWrapper(io.BytesIO())
        self.modules = modules
        path = ([modules.folder] if modules else []) + sys.path
        argv = argv or sys.argv[:1]
        filters = list(warnings.filters)
        values = (out, out, error, empty, empty, argv, path, True, left_by(os.getpid()))
        self.values: list[Any] = [*values, filters, warnings.showwarning]
        self.folder: str | None = None
        self.ours: str | None = None
        self.our_modes: tuple[bool, Any] | None = None
        self.their_modes: tuple[bool, Any] | None = None
        self.saved: list[tuple[int, int]] = []
        self.inside = False

    def swap_in(self) -> None:
        """Give the code what is its own."""
        for raw in self.raw:
            raw.target = sys.stderr
        self.divert()
        self.swap()
        self.enter_folder()
        self.enter_torch()
        if self.modules:
            self.modules.swap_in()
        self.pid = os.getpid()
        self.inside = True

    def swap_out(self) -> None:
        """Take it back; a process that the code has forked ends here."""
        if not self.inside:
            return
        self.inside = False
        if self.modules:
            self.modules.swap_out(set(sys.path))
        self.leave_torch()
        self.leave_folder()
        self.swap()
        if os.getpid() != self.pid:
            os._exit(0)
        self.restore()

    def swap(self) -> None:
        """Exchange the attributes for the others."""
        for index, (names, name) in enumerate(SWAPPED):
            self.values[index], names[name] = names.get(name), self.values[index]

    def divert(self) -> None:
        """Send what is written to file descriptor 1 to 2, and let nothing be read from 0."""
        self.saved.clear()
        if is_stream_of(sys.stdout, 1):
            self.redirect(2, 1)
        if is_stream_of(sys.stdin, 0):
            self.redirect(null_device(), 0)

    def redirect(self, source: int, target: int) -> None:
        """Put one file descriptor in another's place until `restore`."""
        self.saved.append((copy_of(target), target))
        os.dup2(source, target)

    def restore(self) -> None:
        """Put the file descriptors back; what C code still holds in its buffers goes first."""
        for copy, target in self.saved:
            if target == 1:
                flush_c_streams()
            os.dup2(copy, target)
            os.close(copy)
        self.saved.clear()

    def enter_folder(self) -> None:
        """Go to the folder that the code went to."""
        self.ours = current_folder()
        if self.folder is not None:
            with contextlib.suppress(OSError):  # it is gone
                os.chdir(self.folder)

    def leave_folder(self) -> None:
        """Go back, and note where the code was."""
        theirs = current_folder()
        self.folder = theirs if theirs != self.ours else None
        if theirs != self.ours and self.ours is not None:
            os.chdir(self.ours)

    def enter_torch(self) -> None:
        """Set the code's own modes of torch, where torch is loaded; they are global."""
        torch = loaded_torch()
        self.our_modes = torch and modes_of(torch)
        if torch and self.their_modes:
            set_modes(torch, self.their_modes)

    def leave_torch(self) -> None:
        """Set regcheck's modes again; torch's own where the code was the first to load it."""
        torch = loaded_torch()
        if torch:
            self.their_modes = modes_of(torch)
            set_modes(torch, self.our_modes or (True, torch.float32))


def loaded_torch() -> Any:
    """Give torch if something has loaded it; it is never loaded for this."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "set_default_dtype") else None


def modes_of(torch: Any) -> tuple[bool, Any]:
    """Tell whether torch records gradients, and its default dtype."""
    return torch.is_grad_enabled(), torch.get_default_dtype()


def set_modes(torch: Any, modes: tuple[bool, Any]) -> None:
    """Set what `modes_of` tells."""
    if modes != modes_of(torch):
        torch.set_grad_enabled(modes[0])
        torch.set_default_dtype(modes[1])


def text_stream(raw: io.RawIOBase) -> io.TextIOWrapper:
    """Make a text stream that holds nothing back."""
    buffer: Any = raw  # TextIOWrapper writes through to a raw stream as well
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", write_through=True)


def left_by(pid: int) -> Callable[[int], NoReturn]:
    """Make what stands for os._exit; processes that the code has forked do end."""
    end = os._exit

    def leave(status: int) -> NoReturn:
        if os.getpid() != pid:
            end(status)
        raise SystemExit(f"os._exit({status})")

    return leave


def is_stream_of(stream: Any, descriptor: int) -> bool:
    """Say whether a stream writes to or reads from a file descriptor."""
    try:
        return bool(stream.fileno() == descriptor)
    except (AttributeError, OSError, ValueError):
        return False


def current_folder() -> str | None:
    """Give the working directory; None where it is gone."""
    try:
        return os.getcwd()  # noqa: PTH109  # Path.cwd() takes longer, and this runs each step
    except OSError:
        return None


def copy_of(descriptor: int) -> int:
    """Copy a file descriptor; a standard one that is closed leads nowhere from then on.

    Otherwise the copy would take its place, and be standard error.
    """
    copy = os.dup(descriptor)
    while copy <= 2:
        os.dup2(null_device(), copy)
        copy = os.dup(descriptor)
    return copy


@functools.cache
def null_device() -> int:
    """Open the null device once."""
    return os.open(os.devnull, os.O_RDWR)


@functools.cache
def c_flush() -> Any:
    """Find C's fflush; None where it has another name."""
    try:
        return ctypes.CDLL(None).fflush
    except (AttributeError, OSError, TypeError):
        return None


def flush_c_streams() -> None:
    """Write out what C code has printed and not yet written."""
    flush = c_flush()
    if flush is not None:
        flush(None)


@contextlib.contextmanager
def environment_restored() -> Iterator[None]:
    """Undo what the code does to os.environ and to Python's memory of folders."""
    before, folders = dict(os.environ), set(sys.path_importer_cache)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update({k: v for k, v in before.items() if os.environ.get(k) != v})
        for folder in set(sys.path_importer_cache) - folders:
            del sys.path_importer_cache[folder]
