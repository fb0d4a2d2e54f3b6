"""A user's own function: imported without leaving a trace, and called under guard."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from regcheck.errors import UserCodeError, one_line, suggest
from regcheck.user_code.guard import Guard
from regcheck.user_code.own_modules import Modules
from regcheck.user_code.surroundings import Surroundings, environment_restored
from regcheck.user_code.tracebacks import is_library
from regcheck.user_code.updates import WANTED, kind_of

TIMEOUT = 20.0
"""Seconds that one call into a user's code may take: its import, or one step."""

Result = TypeVar("Result")


class UserFunction:
    """A user's function, called under guard.

    Args:
        function: the function.
        label: how messages name it.
        timeout: seconds that one call may take.
        guard: the one that it was imported under; a new one without it.
        side: whose code it is, `scratch` or `framework`; empty for what else is called.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        label: str,
        timeout: float = TIMEOUT,
        guard: Guard | None = None,
        side: str = "",
    ) -> None:
        self.function, self.label, self.side = function, label, side
        own = getattr(function, "__call__", None)  # noqa: B004  # an object's, or its class's
        code = getattr(function, "__code__", getattr(own, "__code__", None))
        folder = str(Path(code.co_filename).parent) if code else None
        self.guard = guard or Guard(label, timeout, folder)

    def call(self, *args: object) -> Any:
        """Call the function.

        Raises:
            UserCodeError: on anything that goes wrong.
        """
        return self.run("", called, self.label, self.function, args, self.side)

    def run(self, moment: str, work: Callable[..., Result], *args: object) -> Result:
        """Run other work that leads into the user's code, such as a step of its generator.

        Args:
            moment: when it is, as messages say it: `step 3 of 12`.
            work: what to call; a UserCodeError that it raises is passed on.
            args: what to call it with.

        Raises:
            UserCodeError: on anything that goes wrong.
        """
        return self.guard.run(moment, work, *args)


def called(
    label: str, function: Callable[..., Any], args: tuple[object, ...], side: str = ""
) -> Any:
    """Call a function, once its parameters are seen to fit; of a class, an object of it."""
    if side:
        function = callable_of(label, function, side)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, and it does not say
        return function(*args)
    try:
        signature.bind(*args)
    except TypeError as mismatch:
        text = misfit(signature, len(args), str(mismatch), side)
        raise UserCodeError(f"{label}: {text}") from None
    return function(*args)


def callable_of(label: str, code: Callable[..., Any], side: str) -> Callable[..., Any]:
    """Give what is called with the problem: a function, an object, or an object of a class.

    Raises:
        UserCodeError: nothing in it can be called with the problem.
    """
    if is_module(code):
        what = "a class of models" if isinstance(code, type) else "a model"
        raise UserCodeError(f"{label}: is {what} (torch.nn.Module); {WANTED[side]}")
    # A class whose objects cannot be called may be called itself, as one of iterators.
    if not isinstance(code, type) or not any("__call__" in vars(one) for one in code.__mro__):
        return code
    with contextlib.suppress(ValueError):  # written in C, and it does not say
        signature = inspect.signature(code)
        try:
            signature.bind()
        except TypeError as mismatch:
            raise UserCodeError(
                f"{label}: is a class of which no object can be made without arguments: they are "
                f"{signature} ({mismatch})\n  Give an object of it, or defaults to its arguments."
            ) from None
    made_of_it: Callable[..., Any] = code()
    return made_of_it


def is_module(code: object) -> bool:
    """Say whether code is a model of torch's, or a class of models; torch is not loaded for it."""
    module = getattr(sys.modules.get("torch.nn"), "Module", None)
    return module is not None and (
        issubclass(code, module) if isinstance(code, type) else isinstance(code, module)
    )


def misfit(signature: inspect.Signature, given: int, reason: str, side: str) -> str:
    """Tell that a function cannot be called as regcheck calls it."""
    wanted = "the problem alone" if given == 1 else f"{given} arguments"
    found = f"cannot be called with {wanted}: its parameters are {signature} ({reason})"
    return f"{found}: give further ones a default; {WANTED[side]}" if side else found


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
    file, name = located(reference, folder)
    linecache.checkcache(str(file))
    importlib.invalidate_caches()
    home = str(file.parent)
    load_standard(file.stem)
    with environment_restored(), numpy_printing_restored():
        guard = Guard(reference, timeout, home, Surroundings(Modules(home), [str(file)]))
        function = guard.run("at its import", load, reference, file, name)
        yield UserFunction(function, reference, timeout, guard, side)


def load_standard(name: str) -> None:
    """Load the standard library's module of a name, before a user's file can be taken for it."""
    if name not in sys.stdlib_module_names - {"antigravity", "this"} or name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec and (spec.origin in ("built-in", "frozen") or is_library(spec.origin or "")):
        with contextlib.suppress(ImportError):  # such as tkinter without its library
            importlib.import_module(name)


@contextlib.contextmanager
def numpy_printing_restored() -> Iterator[None]:
    """Undo what the code does to NumPy's print options, which older NumPy has one set of."""
    before = np.get_printoptions()
    try:
        yield
    finally:
        if np.get_printoptions() != before:
            np.set_printoptions(**before)


def located(reference: str, folder: Path) -> tuple[Path, str]:
    """Find the file that a reference names, and the function's name."""
    path, _, name = reference.strip().rpartition(":")
    if not path or not name.isidentifier():
        text = "must be a Python file and a function in it, like my_train.py:train"
        raise UserCodeError(f"{reference}: {text}")
    file = (folder / path).absolute()
    if file.is_dir():
        raise UserCodeError(f"{reference}: {file} is a folder; name the Python file in it")
    if not file.is_file():
        raise UserCodeError(f"{reference}: there is no file {file}{nearby(file)}")
    if file.suffix != ".py":
        raise UserCodeError(f"{reference}: {file.name} is no Python file; its name must end in .py")
    return file, name


def nearby(file: Path) -> str:
    """Say which Python file may have been meant."""
    if not file.parent.is_dir():
        return f"\n  There is no folder {file.parent}; a relative path is relative to the spec."
    names = sorted(path.name for path in file.parent.glob("*.py"))
    if not names:
        return "\n  That folder holds no Python file; a relative path is relative to the spec."
    return f"\n  In that folder, {suggest(file.name, names)}; a path is relative to the spec."


def load(label: str, file: Path, name: str) -> Callable[..., Any]:
    """Run a user's file as a module, and find the function in it."""
    taken = file.stem in sys.modules or file.stem in sys.stdlib_module_names
    title = f"{file.stem}_of_the_user" if taken else file.stem
    spec = importlib.util.spec_from_file_location(title, file)
    if spec is None:
        raise UserCodeError(f"{label}: {file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    code = compiled(label, file)
    sys.modules[title] = module
    exec(code, vars(module))  # what import does, and no bytecode is read or written
    return found(label, sys.modules.get(title, module), name)


def compiled(label: str, file: Path) -> types.CodeType:
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


def found(label: str, module: types.ModuleType, name: str) -> Callable[..., Any]:
    """Take a function out of a module."""
    functions = [
        key
        for key, value in vars(module).items()
        if (inspect.isroutine(value) or isinstance(value, type))
        and value.__module__ == module.__name__
    ]
    if not hasattr(module, name):
        known = suggest(name, functions) if functions else "it defines no function"
        todo = '\n  What stands under `if __name__ == "__main__":` is not run.'
        raise UserCodeError(f"{label}: the file has no function `{name}`; {known}{todo}")
    value = getattr(module, name)
    if not callable(value):
        text = f"`{name}` is no function but {kind_of(value)}"
        known = f"; {suggest(name, functions)}" if functions else ""
        raise UserCodeError(f"{label}: {text}{known}")
    return value  # type: ignore[no-any-return]
