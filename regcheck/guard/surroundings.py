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
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from regcheck.guard.telling import is_library

SWAPPED: tuple[tuple[Any, str], ...] = (
    (sys, "stdout"),
    (sys, "__stdout__"),
    (sys, "stderr"),
    (sys, "stdin"),
    (sys, "__stdin__"),
    (sys, "argv"),
    (sys, "path"),
    (sys, "dont_write_bytecode"),
    (os, "_exit"),
    (warnings, "filters"),
    (warnings, "showwarning"),
)
"""Attributes that the code has its own of."""


class Left(BaseException):
    """Raised where the code calls os._exit."""


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
        self.error = ToStandardError()
        out, error = text_stream(self.error), text_stream(self.error)
        empty = io.TextIOWrapper(io.BytesIO())
        self.modules = modules
        path = ([modules.folder] if modules else []) + sys.path
        argv = argv or sys.argv[:1]
        filters = list(warnings.filters)
        values = (out, out, error, empty, empty, argv, path, True, left_by(os.getpid()))
        self.values: list[Any] = [*values, filters, warnings.showwarning]
        self.folder: str | None = None
        self.ours: str | None = None
        self.torch: tuple[Any, ...] | None = None
        self.saved: list[tuple[int, int]] = []
        self.inside = False

    def swap_in(self) -> None:
        """Give the code what is its own."""
        self.error.target = sys.stderr
        self.divert()
        self.swap()
        self.enter_folder()
        self.swap_torch()
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
        self.swap_torch()
        self.leave_folder()
        self.swap()
        if os.getpid() != self.pid:
            os._exit(0)
        self.restore()

    def swap(self) -> None:
        """Exchange the attributes for the others."""
        for index, (holder, name) in enumerate(SWAPPED):
            present = getattr(holder, name, None)
            setattr(holder, name, self.values[index])
            self.values[index] = present

    def divert(self) -> None:
        """Send what is written to file descriptor 1 to 2, and let nothing be read from 0."""
        self.saved.clear()
        if is_stream_of(sys.stdout, 1):
            self.redirect(2, 1)
        if is_stream_of(sys.stdin, 0):
            self.redirect(null_device(), 0)

    def redirect(self, source: int, target: int) -> None:
        """Put one file descriptor in another's place until `restore`."""
        self.saved.append((os.dup(target), target))
        try:
            os.dup2(source, target)
        except OSError:  # standard error is closed
            os.dup2(null_device(), target)

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

    def swap_torch(self) -> None:
        """Exchange torch's modes, where torch is loaded; they are global."""
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(torch, "set_default_dtype"):
            return
        present = (torch.is_grad_enabled(), torch.get_default_dtype())
        wanted, self.torch = self.torch, present
        if wanted is not None and wanted != present:
            torch.set_grad_enabled(wanted[0])
            torch.set_default_dtype(wanted[1])


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
        raise Left(f"os._exit({status})")

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


class Modules:
    """The modules that code imports from its own folder, there only while the code runs.

    Modules of the same names that were loaded from elsewhere make room meanwhile, but for the
    libraries': those rely on each other.

    Args:
        folder: the code's folder; what else it puts on sys.path counts likewise.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.known = set(sys.path)
        self.theirs: dict[str, ModuleType] = {}
        self.hidden: dict[str, ModuleType] = {}
        own = provided(folder)
        self.others = [name for name in sys.modules if self.gives_way(name, own)]
        self.last: str | None = None

    def gives_way(self, name: str, own: set[str]) -> bool:
        """Say whether a loaded module stands where one of the folder's would."""
        top = name.partition(".")[0]
        if top not in own or top in {"__main__", "regcheck"} or top in sys.stdlib_module_names:
            return False
        home = home_of(sys.modules[top]) if top in sys.modules else None
        return home is not None and home != self.folder and not is_library(home)

    def swap_in(self) -> None:
        """Put the code's modules into sys.modules."""
        self.hidden = {name: sys.modules.pop(name) for name in self.others if name in sys.modules}
        sys.modules.update(self.theirs)
        self.last = next(reversed(sys.modules))

    def swap_out(self, path: set[str]) -> None:
        """Take them out, with those that the code has imported meanwhile."""
        folders = {str(Path(folder).absolute()) for folder in path - self.known} | {self.folder}
        for name in self.new_names():
            top = sys.modules.get(name.partition(".")[0])
            if top is not None and home_of(top) in folders:
                self.theirs[name] = sys.modules[name]
        for name in self.theirs:
            sys.modules.pop(name, None)
        sys.modules.update(self.hidden)

    def new_names(self) -> list[str]:
        """List what was put into sys.modules since `swap_in`; it keeps the order."""
        names = []
        for name in reversed(sys.modules):
            if name == self.last:
                break
            names.append(name)
        return names


def provided(folder: str) -> set[str]:
    """Name the modules and packages that can be imported from a folder."""
    names = set()
    for entry in os.scandir(folder):
        name, dot, kind = entry.name.partition(".")
        package = not dot and (Path(entry.path) / "__init__.py").is_file()
        if package or kind == "py" or kind.endswith(("so", "pyd")):
            names.add(name)
    return names


def home_of(module: ModuleType) -> str | None:
    """Give the folder that a top-level module was imported from."""
    paths = getattr(module, "__path__", None)
    place = next(iter(paths), None) if paths else getattr(module, "__file__", None)
    return str(Path(place).absolute().parent) if isinstance(place, str) else None


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
