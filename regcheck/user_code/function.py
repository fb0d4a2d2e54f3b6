"""A user's own function: imported without leaving a trace, and called under guard."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from regcheck.errors import UserCodeError, one_line, suggest
from regcheck.user_code.guard import Guard
from regcheck.user_code.surroundings import (
    Modules,
    Surroundings,
    descriptors_diverted,
    environment_restored,
)
from regcheck.user_code.tracebacks import is_library
from regcheck.user_code.updates import WANTED, kind_of

TIMEOUT = 20.0
"""Seconds that one call into a user's code may take: its import, or one step."""


class UserFunction:
    """A user's function, called under guard.

    Args:
        function: the function, or an object or class that is called in its place.
        label: how messages name it.
        timeout: seconds that one call may take.
        side: whose code it is, `scratch` or `framework`.
        guard: the one that it was imported under; a new one without it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        label: str,
        timeout: float = TIMEOUT,
        side: str = "scratch",
        guard: Guard | None = None,
    ) -> None:
        self.function, self.label, self.side = function, label, side
        own = getattr(function, "__call__", None)  # noqa: B004  # an object's, or its class's
        code = getattr(function, "__code__", getattr(own, "__code__", None))
        folder = str(Path(code.co_filename).parent) if code else None
        self.guard = guard or Guard(label, timeout, folder)

    def call(self, problem: object) -> Any:
        """Call the function with the problem; whatever goes wrong is a UserCodeError."""
        return self.guard.run("", self.call_unguarded, problem)

    def call_unguarded(self, problem: object) -> Any:
        """Call the function, once its parameters are seen to fit."""
        function = self.to_call()
        mismatch = misfit(function, problem)
        if mismatch:
            raise UserCodeError(
                f"{self.label}: cannot be called with the problem alone: its parameters are "
                f"{mismatch}; give the others defaults: {WANTED[self.side]}"
            )
        return function(problem)

    def to_call(self) -> Callable[..., Any]:
        """Return what is called with the problem: the function, or an object of the class."""
        code = self.function
        if is_torch_module(code):
            what = "a class of models" if isinstance(code, type) else "a model"
            text = f"is {what} (torch.nn.Module); {WANTED[self.side]}"
            raise UserCodeError(f"{self.label}: {text}")
        # A class whose objects cannot be called may be called itself, as one of iterators.
        if not isinstance(code, type) or not any("__call__" in vars(one) for one in code.__mro__):
            return code
        mismatch = misfit(code)
        if mismatch:
            raise UserCodeError(
                f"{self.label}: is a class that cannot be instantiated without arguments: its "
                f"parameters are {mismatch}\n  Give an instance of it, or give them defaults."
            )
        made: Callable[..., Any] = code()
        return made


def misfit(function: Callable[..., Any], *args: object) -> str:
    """Return a function's parameters and why arguments do not fit them; nothing where they do."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, and it does not say
        return ""
    try:
        signature.bind(*args)
    except TypeError as mismatch:
        return f"{signature} ({mismatch})"
    return ""


def is_torch_module(code: object) -> bool:
    """Whether code is a model of torch's or a class of models; never load torch for it."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    return module is not None and (
        issubclass(code, module) if isinstance(code, type) else isinstance(code, module)
    )


@contextlib.contextmanager
def imported(
    reference: str, folder: Path, timeout: float = TIMEOUT, side: str = "scratch"
) -> Iterator[UserFunction]:
    """Import a user's function for as long as the context lasts, and leave no trace of it.

    The file's own folder can be imported from, at import and in later calls. `__name__` is not
    `__main__`. sys.modules, sys.path, sys.argv, the working directory, os.environ, the filters of
    warnings and NumPy's settings are as before in between and at the end; no bytecode is written.

    Args:
        reference: `FILE.py:FUNCTION`, the file relative to `folder` or absolute.
        folder: the spec's folder.
        timeout: seconds that the import and each call may take.
        side: whose code it is.

    Raises:
        UserCodeError: the file or the function is not there, or cannot be imported.
    """
    file, name = locate(reference, folder)
    linecache.checkcache(str(file))
    importlib.invalidate_caches()
    home = str(file.parent)
    load_standard_module(file.stem)
    with descriptors_diverted(), environment_restored():
        guard = Guard(reference, timeout, home, Surroundings(Modules(home), [str(file)]))
        function = guard.run("at its import", load, reference, file, name)
        yield UserFunction(function, reference, timeout, side, guard)


def locate(reference: str, folder: Path) -> tuple[Path, str]:
    """Find the file that a reference names, and the function's name."""
    path, _, name = reference.strip().rpartition(":")
    if not path or not name.isidentifier():
        text = "must be a Python file and a function in it, like my_train.py:train"
        raise UserCodeError(f"{reference}: {text}")
    file = (folder / path).absolute()
    if file.is_dir():
        raise UserCodeError(f"{reference}: {file} is a folder; name the Python file in it")
    if not file.is_file():
        raise UserCodeError(f"{reference}: there is no file {file}\n  {nearby(file)}")
    if file.suffix != ".py":
        raise UserCodeError(
            f"{reference}: {file.name} is not a Python file; its name must end in .py"
        )
    return file, name


def nearby(file: Path) -> str:
    """Suggest which Python file may have been meant."""
    if not file.parent.is_dir():
        return f"There is no folder {file.parent}; paths are relative to the spec."
    names = sorted(path.name for path in file.parent.glob("*.py"))
    if not names:
        return "That folder has no Python file; paths are relative to the spec."
    return f"{suggest(file.name, names)} (paths are relative to the spec)"


def load_standard_module(name: str) -> None:
    """Load the standard library's module of a name, before a user's file can be taken for it."""
    if name not in sys.stdlib_module_names - {"antigravity", "this"} or name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec and (spec.origin in ("built-in", "frozen") or is_library(spec.origin or "")):
        with contextlib.suppress(ImportError):  # such as tkinter without its library
            importlib.import_module(name)


def load(label: str, file: Path, name: str) -> Callable[..., Any]:
    """Run a user's file as a module, and take the function out of it."""
    taken = file.stem in sys.modules or file.stem in sys.stdlib_module_names
    title = f"{file.stem}_of_the_user" if taken else file.stem
    spec = importlib.util.spec_from_file_location(title, file)
    if spec is None:
        raise UserCodeError(f"{label}: {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    code = compile_file(label, file)
    sys.modules[title] = module
    exec(code, vars(module))  # what import does, and no bytecode is read or written
    return function_of(sys.modules.get(title, module), name, label)


def compile_file(label: str, file: Path) -> CodeType:
    """Compile a user's file."""
    try:
        return compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except OSError as error:
        raise UserCodeError(f"{label}: {file} cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        place = f"{file}:{error.lineno}:{error.offset}" if error.lineno else str(file)
        text = f"\n    {one_line(error.text.strip())}" if error.text else ""
        raise UserCodeError(f"{label}: {place}: {error.msg}; fix it there{text}") from None
    except ValueError as error:
        raise UserCodeError(f"{label}: {file}: {error}; is it a text file?") from None


def function_of(module: ModuleType, name: str, label: str) -> Callable[..., Any]:
    """Take a function out of a module."""
    functions = [
        key
        for key, value in vars(module).items()
        if (inspect.isroutine(value) or isinstance(value, type))
        and value.__module__ == module.__name__
    ]
    if not hasattr(module, name):
        known = suggest(name, functions) if functions else "it defines no function"
        todo = 'Code under `if __name__ == "__main__":` is not run.'
        raise UserCodeError(f"{label}: the file has no function `{name}`; {known}\n  {todo}")
    value: Any = getattr(module, name)
    if not callable(value):
        known = f"; {suggest(name, functions)}" if functions else ""
        raise UserCodeError(f"{label}: `{name}` is not a function but {kind_of(value)}{known}")
    return value  # type: ignore[no-any-return]
