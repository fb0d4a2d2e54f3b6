"""Mutants of one module, by cosmic-ray's operators, and those that no test kills.

    python tests/mutation.py regcheck/numerics/bounds/rounding.py [--share 0.1] [tests …]

A mutant is the module with one operator or number changed. Each is tested in a process of its own
that is forked off where pytest has collected: by `tests/test_<module>.py` and those that are named
after it, `test_<module>_*.py`, or by the tests given, whose quickest are best the first. No file is
changed. `docs/mutation.md` says what was found.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FRUITLESS = ("BitAnd", "BitOr", "BitXor", "Is", "IsNot", "LShift", "RShift")
"""Operators that fail on every float, or are never true of one; no mutant is made by them."""


def mutants(source: str) -> Iterator[str]:
    """Yield the sources that differ from this one by one operator or number, each once."""
    parse = importlib.import_module("cosmic_ray.ast")
    plugins = importlib.import_module("cosmic_ray.plugins")
    mutating = importlib.import_module("cosmic_ray.mutating")
    nodes = list(parse.ast_nodes(parse.get_ast(source)))
    seen = {meaning(source), ""}
    for name in plugins.operator_names():
        kind = plugins.get_operator(name)
        if kind.arguments() or name.endswith(tuple(f"_{one}" for one in FRUITLESS)):
            continue
        places = sum(len(list(kind().mutation_positions(node))) for node in nodes)
        for occurrence in range(places):
            mutant = mutating.mutate_code(source, kind(), occurrence) or ""
            if meaning(mutant) not in seen:
                seen.add(meaning(mutant))
                yield mutant


def meaning(source: str) -> str:
    """Give what is run of a source: all but its annotations, and nothing where it is no Python."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        for part in {"annotation", "returns"} & set(node._fields):
            setattr(node, part, ast.Constant(None))
    return ast.dump(tree)


def plant(module: ModuleType, source: str) -> None:
    """Make a source the module, in others' names and tables too that hold what was in it."""
    old = dict(vars(module))
    exec(compile(source, str(module.__file__), "exec"), vars(module))
    new = {
        id(value): (name, vars(module)[name])
        for name, value in old.items()
        if vars(module)[name] is not value and not name.startswith("__")
    }
    for other in list(sys.modules.values()):
        # `isinstance` would ask each object for its class, and torch has some that warn if asked.
        tables = [table for table in vars(other).values() if type(table) is dict]
        for table in [vars(other), *tables]:
            for key, value in list(table.items()):
                if id(value) in new:
                    name, planted = new[id(value)]
                    # A number is the same object wherever it stands: it goes by its name too.
                    if key == name or not isinstance(value, int | float):
                        table[key] = planted


def change(source: str, mutant: str) -> str:
    """Write the line that differs, with its number."""
    old, new = source.splitlines(), mutant.splitlines()
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    _, start, _, at, end = next(code for code in codes if code[0] != "equal")
    return f"{start + 1}: {old[start].strip()}\n    → {' '.join(map(str.strip, new[at:end]))}"


class Mutation:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, path: Path, share: float) -> None:
        self.path, self.share = path, share
        self.module = ".".join(path.with_suffix("").parts)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Test the mutants in place of pytest's own loop, print those that survive, and count."""
        source, draw, started = self.path.read_text("utf-8"), random.Random(0), time.monotonic()
        if not self.survives(session, source, 3600):
            raise pytest.UsageError("the tests fail without a mutant")
        seconds, tried, survived = 60 + 10 * int(time.monotonic() - started), 0, 0
        for mutant in mutants(source):
            if draw.random() < self.share:
                tried += 1
                if self.survives(session, mutant, seconds):
                    survived += 1
                    print(f"{self.path}:{change(source, mutant)}", flush=True)
        print(f"{tried} mutants, {tried - survived} killed, {survived} survived")
        return True

    def survives(self, session: pytest.Session, source: str, seconds: int) -> bool:
        """Say whether a child with this source passes all tests in time."""
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1] == 0
        signal.alarm(seconds)  # which ends the process
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            plant(importlib.import_module(self.module), source)
            for item, following in zip(session.items, [*session.items[1:], None], strict=True):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    os._exit(1)
        except BaseException:
            os._exit(1)
        os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path)
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn by lot")
    chosen, tests = parser.parse_known_args()
    named = [f"test_{chosen.module.stem}.py", f"test_{chosen.module.stem}_*.py"]
    tests = tests or [str(path) for name in named for path in sorted(Path("tests").glob(name))]
    with tempfile.TemporaryDirectory() as folder:
        options = ["-q", "-s", "-p", "no:cacheprovider", "--basetemp", f"{folder}/tests"]
        return pytest.main([*options, *tests], [Mutation(chosen.module, chosen.share)])


if __name__ == "__main__":
    sys.exit(main())
