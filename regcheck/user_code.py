"""A user's own function: imported without a trace, called under guard, and its yields read."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import math
import sys
import types
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from regcheck.errors import UserCodeError, one_line, shortened, suggest
from regcheck.guard import Guard, Modules
from regcheck.guard.surroundings import Surroundings, environment_restored
from regcheck.problem import Array
from regcheck.user_problem import UserProblem

PATIENCE = 20.0
"""Seconds that one call into a user's code may take: its import, or one step."""

EXAMPLE = 'yield {"weight": w, "bias": b}'

Result = TypeVar("Result")


class UserFunction:
    """A user's function, called under guard.

    Args:
        function: the function.
        label: how messages name it.
        patience: seconds that one call may take.
        guard: the one that it was imported under; a new one without it.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        label: str,
        patience: float = PATIENCE,
        guard: Guard | None = None,
    ) -> None:
        self.function, self.label = function, label
        code = getattr(function, "__code__", None)
        folder = str(Path(code.co_filename).parent) if code else None
        self.guard = guard or Guard(label, patience, folder)

    def call(self, *args: object) -> Any:
        """Call the function.

        Raises:
            UserCodeError: on anything that goes wrong.
        """
        return self.run("", called, self.label, self.function, args)

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


def called(label: str, function: Callable[..., Any], args: tuple[object, ...]) -> Any:
    """Call a function, once its parameters are seen to fit."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C, and it does not say
        return function(*args)
    try:
        signature.bind(*args)
    except TypeError as mismatch:
        raise UserCodeError(misfit(label, signature, len(args), str(mismatch))) from None
    return function(*args)


def misfit(label: str, signature: inspect.Signature, given: int, reason: str) -> str:
    """Tell that a function cannot be called as regcheck calls it."""
    name = label.rpartition(":")[2]
    wanted = "1 argument, the problem" if given == 1 else f"{given} arguments"
    todo = f"\n  Write `def {name}(problem):`; give further parameters a default."
    return f"{label}: cannot be called with {wanted}: its parameters are {signature} ({reason})" + (
        todo if given == 1 else ""
    )


@contextlib.contextmanager
def imported(reference: str, folder: Path, patience: float = PATIENCE) -> Iterator[UserFunction]:
    """Import a user's function for as long as the context lasts, and leave no trace of it.

    The file's own folder can be imported from, at import and in later calls. `__name__` is not
    `__main__`. sys.modules, sys.path, sys.argv, the working directory, os.environ, the filters of
    warnings and NumPy's settings are as before in between and at the end; no bytecode is written.

    Args:
        reference: `FILE.py:FUNCTION`, the file relative to `folder` or absolute.
        folder: the spec's folder.
        patience: seconds that the import and each call may take.

    Raises:
        UserCodeError: the file or the function is not there, or cannot be imported.
    """
    file, name = located(reference, folder)
    linecache.checkcache(str(file))
    importlib.invalidate_caches()
    home = str(file.parent)
    if file.stem in sys.stdlib_module_names - {"antigravity", "this"}:
        with contextlib.suppress(ImportError):  # before the file can be taken for it
            importlib.import_module(file.stem)
    with environment_restored(), numpy_printing_restored():
        guard = Guard(reference, patience, home, Surroundings(Modules(home), [str(file)]))
        function = guard.run("at its import", load, reference, file, name)
        yield UserFunction(function, reference, patience, guard)


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
        raise UserCodeError(f"{label}: {place}: {error.msg}; mend it there{text}") from None
    except ValueError as error:
        raise UserCodeError(f"{label}: {file}: {error}; is it a text file?") from None


def found(label: str, module: types.ModuleType, name: str) -> Callable[..., Any]:
    """Take a function out of a module."""
    functions = [
        key
        for key, value in vars(module).items()
        if inspect.isroutine(value) and value.__module__ == module.__name__
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


def kind_of(value: object) -> str:
    """Say what kind of thing a value is."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


class Yielded(NamedTuple):
    """What the scratch function yields after an update.

    Attributes:
        parameters: float64 copies, in torch's shapes.
        loss: the loss, where it is yielded.
        gradient: likewise, in torch's shapes.
        single: whether float32 holds every parameter exactly.
    """

    parameters: dict[str, Array]
    loss: float | None
    gradient: dict[str, Array] | None
    single: bool


class ScratchSteps:
    """The updates of a user's scratch function, one at a time.

    Args:
        function: called with `problem`, it gives a generator.
        problem: what it is called with.
        shapes: torch's shape of each parameter.
        steps: how many updates there must be.

    Raises:
        UserCodeError: the function gives no generator, or fails.
    """

    def __init__(
        self,
        function: UserFunction,
        problem: UserProblem,
        shapes: Mapping[str, tuple[int, ...]],
        steps: int,
    ) -> None:
        self.function, self.problem = function, problem
        self.shapes, self.steps = dict(shapes), steps
        self.came = 0
        self.generator = self.run("at its start", self.begin)

    def next(self) -> Yielded:
        """Let the function take its next step.

        Raises:
            UserCodeError: it fails, ends too early, or yields something else.
        """
        return self.run(f"step {self.came + 1} of {self.steps}", self.advance)

    def finish(self) -> None:
        """Let the function end after its last step.

        Raises:
            UserCodeError: it fails, or yields once more.
        """
        self.run("after its last step", self.end)

    def close(self) -> None:
        """End the function early; whatever it does is no concern any more."""
        close = getattr(getattr(self, "generator", None), "close", None)
        if close is not None:
            with contextlib.suppress(UserCodeError):
                self.function.run("at its end", close)

    def run(self, moment: str, work: Callable[[], Result]) -> Result:
        """Run a part of the function under guard; close it where that fails."""
        try:
            return self.function.run(moment, work)
        except UserCodeError:
            self.close()
            raise

    def begin(self) -> Iterator[object]:
        """Call the function."""
        made = called(self.function.label, self.function.function, (self.problem,))
        if isinstance(made, Iterator):
            return made
        raise self.complaint("", no_generator(made))

    def advance(self) -> Yielded:
        """Take one step and read what is yielded."""
        try:
            value = next(self.generator)
        except StopIteration:
            raise self.complaint("", self.too_few()) from None
        self.came += 1
        try:
            return read(value, self.shapes)
        except Refused as refused:
            raise self.complaint(f"step {self.came} of {self.steps}: ", str(refused)) from None

    def end(self) -> None:
        """Run what follows the last yield."""
        for _ in self.generator:
            raise self.complaint("", self.too_many())

    def complaint(self, moment: str, text: str) -> UserCodeError:
        """Make an error about the function."""
        return UserCodeError(f"{self.function.label}: {moment}{text}")

    def too_few(self) -> str:
        """Tell that the function ended early."""
        came = "without a single `yield`" if not self.came else f"after {self.came} of them"
        return (
            f"must yield {self.steps} times, and ended {came}\n"
            f"  There is one step for each of problem.batches, over all {self.problem.epochs} "
            f"epochs:\n  `{EXAMPLE}` once in `for rows in problem.batches:`."
        )

    def too_many(self) -> str:
        """Tell that the function goes on."""
        return (
            f"must yield {self.steps} times, and yields once more\n"
            f"  There is one step for each of problem.batches, and those are over all "
            f"{self.problem.epochs} epochs:\n  yield once after each update, not before the "
            "first, and put no loop over epochs around it."
        )


def no_generator(made: object) -> str:
    """Tell that a function gave something else than a generator."""
    if isinstance(made, Coroutine):
        made.close()
    if isinstance(made, AsyncIterable | Coroutine):
        return f"is an async function; write `def` for `async def`, and\n  `{EXAMPLE}` in it"
    return (
        f"must be a generator, and returned {kind_of(made)}\n"
        f"  Put `{EXAMPLE}` after each update, in place of what it returns at the end."
    )


class Refused(Exception):  # noqa: N818  # never leaves this module
    """What was yielded cannot be used."""


EXTRAS = ("loss", "grad")
"""What may be yielded besides the parameters."""


def read(value: object, shapes: Mapping[str, tuple[int, ...]]) -> Yielded:
    """Read what the function yielded."""
    if not isinstance(value, Mapping):
        listed = "a tuple" if isinstance(value, tuple) else kind_of(value)
        raise Refused(f"yielded {listed}, not a mapping\n  Write `{pattern(shapes)}`.")
    check_names(value, shapes, EXTRAS, "")
    with np.errstate(all="ignore"):
        arrays = {name: numbers(value[name], name) for name in shapes}
        parameters = {name: shaped(arrays[name], shapes[name], name) for name in shapes}
        return Yielded(
            parameters,
            read_loss(value.get("loss")),
            read_gradient(value.get("grad"), shapes),
            all(map(is_single, arrays.values())),
        )


def pattern(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Show what to yield."""
    named = ", ".join(f'"{name}": ..' for name in shapes)
    return f"yield {{{named}}}"


def check_names(
    value: Mapping[Any, Any], names: Iterable[str], extras: Iterable[str], inside: str
) -> None:
    """Refuse missing and unknown names."""
    expected, allowed = list(names), [*names, *extras]
    missing = [name for name in expected if name not in value]
    unknown = [key for key in value if key not in allowed]
    if not missing and not unknown:
        return
    parts = [f"`{name}` is missing" for name in missing]
    for key in unknown:
        near = suggest(key, allowed) if isinstance(key, str) else "a name is a string"
        parts.append(f"there is no {shortened(one_line(repr(key)))} here ({near})")
    more = ", besides `loss` and `grad` if you like" if inside == "" else ""
    needed = ", ".join(f"`{name}`" for name in expected)
    found = f"in what it yielded{inside}, " + "; ".join(parts)
    raise Refused(f"{found}\n  It must hold {needed}{more}, and nothing else.")


def numbers(value: Any, name: str) -> np.ndarray[Any, Any]:
    """Read numbers from whatever NumPy makes numbers of."""
    detach = getattr(value, "detach", None)
    plain = detach() if callable(detach) else value
    if isinstance(plain, np.ma.MaskedArray) and np.ma.is_masked(plain):
        raise Refused(f"`{name}` has masked entries\n  Fill them: a parameter has all its numbers.")
    try:
        array = np.asarray(plain)
    except (TypeError, ValueError) as error:
        reason = one_line(str(error))
        text = f"`{name}` is {kind_of(value)}, of which NumPy makes no numbers: {reason}"
        raise Refused(f"{text}\n  Yield an array of real numbers.") from None
    if array.dtype.kind not in "fiu":
        what = KINDS.get(array.dtype.kind, f"of dtype {array.dtype}")
        text = f"`{name}` is {kind_of(value)}, and it holds {what}"
        raise Refused(f"{text}\n  Yield an array of real numbers.")
    return array


KINDS = {
    "O": "objects, not numbers",
    "U": "text, not numbers",
    "S": "text, not numbers",
    "b": "true and false, not numbers",
    "c": "complex numbers",
}
"""What arrays hold by their dtype's kind, where that is no real numbers."""


def shaped(array: np.ndarray[Any, Any], shape: tuple[int, ...], name: str) -> Array:
    """Copy numbers to float64 in torch's shape."""
    squeezed = tuple(size for size in shape if size != 1)
    fits = array.size == math.prod(shape) and (
        len(squeezed) < 2 or tuple(size for size in array.shape if size != 1) == squeezed
    )
    if not fits:
        raise Refused(
            f"`{name}` has shape {array.shape}, {array.size:,} numbers; expected "
            f"{math.prod(shape):,} numbers in shape {shape}{forms(shape, array)}"
        )
    return np.array(array, np.float64).reshape(shape)


def forms(shape: tuple[int, ...], array: np.ndarray[Any, Any]) -> str:
    """Say which other shapes will do, or what to do about this one."""
    squeezed = tuple(size for size in shape if size != 1)
    if tuple(size for size in array.shape if size != 1) == squeezed[::-1]:
        return "\n  Transpose it: yield `W.T`."
    if len(squeezed) < 2:
        count = math.prod(shape)
        return f"; ({count},) and ({count}, 1) will do too"
    return ""


def is_single(array: np.ndarray[Any, Any]) -> bool:
    """Say whether float32 holds every number exactly."""
    if array.dtype.itemsize <= 4 and array.dtype.kind == "f":
        return True
    same = array.astype(np.float32) == array
    return bool(same.all()) or bool((same | (array != array)).all())


def read_loss(value: object) -> float | None:
    """Read a loss: one number, or None."""
    if value is None:
        return None
    array = numbers(value, "loss")
    if array.size != 1:
        text = f"`loss` has shape {array.shape}, {array.size:,} numbers; expected one number"
        raise Refused(f"{text}\n  Yield the mean (or the sum) over the rows, as the spec has it.")
    return float(array.reshape(()))


def read_gradient(value: object, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array] | None:
    """Read a gradient: a mapping of every parameter, or None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        named = pattern(shapes).removeprefix("yield ")
        raise Refused(f'`grad` is {kind_of(value)}, not a mapping\n  Write `"grad": {named}`.')
    check_names(value, shapes, (), " as `grad`")
    return {
        name: shaped(numbers(value[name], f"grad of {name}"), shape, f"grad of {name}")
        for name, shape in shapes.items()
    }
