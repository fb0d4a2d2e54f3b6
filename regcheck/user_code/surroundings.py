"""What a user's code finds around it, and regcheck gets back afterwards.

Streams, paths, modules and modes are swapped: what the code changes is there again at its next
call, and never in regcheck or in another user's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np

from regcheck.user_code.tracebacks import is_library


class Surroundings:
    """Swaps what the code finds around it in and out.

    Args:
        modules: those of the code's own folder; None where it has none.
        argv: the code's sys.argv.
    """

    def __init__(self, modules: Modules | None = None, argv: list[str] | None = None) -> None:
        self.modules = modules
        self.raw = StandardError(), StandardError()
        # Held here too: a stream that the code replaces must not close what it wrote to.
        self.streams = out, error = text_stream(self.raw[0]), text_stream(self.raw[1])
        empty = io.TextIOWrapper(io.BytesIO())
        self.other_attributes: dict[tuple[ModuleType, str], Any] = {
            (sys, "stdout"): out,
            (sys, "__stdout__"): out,
            (sys, "stderr"): error,
            (sys, "stdin"): empty,
            (sys, "__stdin__"): empty,
            (sys, "argv"): argv or sys.argv[:1],
            (sys, "path"): ([modules.folder] if modules else []) + sys.path,
            (sys, "dont_write_bytecode"): True,
            (os, "_exit"): exit_of_forks(),
            (warnings, "filters"): list(warnings.filters),
            (warnings, "showwarning"): warnings.showwarning,
        }
        self.other_settings = {change: read() for read, change, _ in process_settings()}
        self.inside = False

    def swap_in(self) -> None:
        """Put in what is the code's own."""
        for raw in self.raw:
            raw.target = sys.stderr
        self.exchange_attributes()
        self.exchange_settings()
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
            self.modules.swap_out()
        self.exchange_settings()
        self.exchange_attributes()
        if os.getpid() != self.pid:
            os._exit(0)

    def exchange_attributes(self) -> None:
        """Exchange the modules' attributes for the others."""
        for (module, name), other in self.other_attributes.items():
            self.other_attributes[module, name] = getattr(module, name, None)
            setattr(module, name, other)

    def exchange_settings(self) -> None:
        """Exchange what is set for the whole process for the others."""
        for read, change, default in process_settings():
            now, other = read(), self.other_settings.get(change, default)
            self.other_settings[change] = now
            if other != now:
                change(other)


def process_settings() -> list[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
    """List what is set for the whole process: what reads it, what changes it, and its default.

    Torch is not loaded for it; where the code loads it first, regcheck's settings are the defaults.
    """
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "set_default_dtype"):
        return [(working_folder, change_folder, None)]
    return [
        (working_folder, change_folder, None),
        (torch.is_grad_enabled, torch.set_grad_enabled, True),
        (torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    ]


def working_folder() -> str | None:
    """Return the working directory; None where it is gone."""
    try:
        return os.getcwd()  # noqa: PTH109  # Path.cwd() takes longer, and this runs each step
    except OSError:
        return None


def change_folder(folder: str | None) -> None:
    """Change the working directory, unless the other is gone."""
    if folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(folder)


class Modules:
    """The modules that code imports from its own folder, there only while the code runs.

    Modules of the same names that were loaded from elsewhere make way meanwhile, but for the
    libraries': those rely on each other.

    Args:
        folder: the code's folder; what else it puts on sys.path counts likewise.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.known_path = set(sys.path)
        self.own: dict[str, ModuleType] = {}
        self.displaced: dict[str, ModuleType] = {}
        provided = {module.name for module in pkgutil.iter_modules([folder])}
        foreign = {name for name in provided - {"__main__", "regcheck"} if self.is_foreign(name)}
        self.to_displace = [name for name in sys.modules if name.partition(".")[0] in foreign]

    def is_foreign(self, name: str) -> bool:
        """Whether a module of the name was loaded, neither from the folder nor a library."""
        home = home_of(sys.modules.get(name))
        return home is not None and home != self.folder and not is_library(home)

    def swap_in(self) -> None:
        """Put the code's modules into sys.modules."""
        for name in self.to_displace:
            if name in sys.modules:
                self.displaced[name] = sys.modules.pop(name)
        sys.modules.update(self.own)
        self.last = next(reversed(sys.modules))

    def swap_out(self) -> None:
        """Take them out, with those that the code has imported meanwhile."""
        added = {str(Path(folder).absolute()) for folder in set(sys.path) - self.known_path}
        # sys.modules keeps the order in which modules were put in.
        for name in takewhile(lambda name: name != self.last, reversed(sys.modules)):
            if home_of(sys.modules.get(name.partition(".")[0])) in {self.folder, *added}:
                self.own[name] = sys.modules[name]
        for name in self.own:
            sys.modules.pop(name, None)
        sys.modules.update(self.displaced)
        self.displaced = {}


def home_of(module: ModuleType | None) -> str | None:
    """Return the folder that a top-level module was imported from."""
    paths = getattr(module, "__path__", None)
    place = next(iter(paths), None) if paths else getattr(module, "__file__", None)
    return str(Path(place).absolute().parent) if isinstance(place, str) else None


class StandardError(io.RawIOBase):
    """A stream to whatever regcheck's standard error is, which the code may close or wrap."""

    target: Any = None

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes as text."""
        if self.target is not None:
            self.target.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def fileno(self) -> int:
        """Return standard error's file descriptor."""
        if self.target is None:
            raise io.UnsupportedOperation("fileno")
        return int(self.target.fileno())

    def isatty(self) -> bool:
        """Whether standard error is a terminal."""
        return self.target is not None and self.target.isatty()


def text_stream(raw: io.RawIOBase) -> io.TextIOWrapper:
    """Make a text stream that holds nothing back."""
    buffer: Any = raw  # TextIOWrapper writes through to a raw stream as well
    return io.TextIOWrapper(buffer, "utf-8", "backslashreplace", write_through=True)


def exit_of_forks() -> Callable[[int], NoReturn]:
    """Make what stands for os._exit: only processes that the code has forked end by it."""
    end, pid = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != pid:
            end(status)
        raise SystemExit(f"os._exit({status})")

    return leave


@contextlib.contextmanager
def descriptors_diverted() -> Iterator[None]:
    """Send what is written to file descriptor 1 to 2 meanwhile, and let nothing be read from 0.

    Code that reaches past `sys.stdout`, and processes that it starts, cannot print into the report;
    nor can code that closes descriptors take the report's away.
    """
    # A standard descriptor that is closed leads nowhere from now on: the copy of another would
    # take its place.
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    copies = []
    streams = ((sys.stderr, 2, 2), (sys.stdout, 1, 2), (sys.stdin, 0, null))
    for stream, descriptor, source in streams:
        if is_stream_of(stream, descriptor):
            stream.flush()
            copies.append((descriptor, os.dup(descriptor)))
            os.dup2(source, descriptor)
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError, OSError, TypeError):  # it has another name
            ctypes.CDLL(None).fflush(None)  # what C code has printed and not yet written
        for descriptor, copy in copies:
            os.dup2(copy, descriptor)
            os.close(copy)
        os.close(null)


def is_stream_of(stream: Any, descriptor: int) -> bool:
    """Whether a stream writes to or reads from a file descriptor."""
    try:
        return bool(stream.fileno() == descriptor)
    except (AttributeError, OSError, ValueError):
        return False


@contextlib.contextmanager
def environment_restored() -> Iterator[None]:
    """Undo what the code does to os.environ, NumPy's printing and Python's memory of folders."""
    environment, importers = dict(os.environ), set(sys.path_importer_cache)
    try:
        with np.printoptions():
            yield
    finally:
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        for folder in set(sys.path_importer_cache) - importers:
            del sys.path_importer_cache[folder]
