"""Holds the layers: who may import whom, and what starts without torch and NumPy."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LAYERS = [
    {"errors", "convention", "spelling"},
    {"training"},
    {"concerns"},
    {"causes", "matching"},
    {"formula"},
    {"cause_formula", "worked"},
    {"spec"},
    {"data", "guard", "packing", "schedule"},
    {"orders", "problem"},
    {"losses", "models", "norms", "optimizers", "optimizer_rounding"}
    | {"user_problem", "user_yields"},
    {"modules", "rounding", "user_function"},
    {"noise", "numpy_trainer", "user_code"},
    {"torch_trainer"},
    {"lockstep"},
    {"power", "shadow"},
    {"measured", "trial_faults"},
    {"compare", "history", "sides"},
    {"drift", "hypotheses", "observed", "trace", "trials"},
    {"logarithms", "reporting", "scales", "search", "telling"},
    {"clues", "entries", "inputs"},
    {"diagnose"},
    {"mending"},
    {"record"},
    {"checking", "explain"},
    {"report"},
    {"cli", "testing"},
    {"__main__"},
]
"""Rooms from the ground up: a room imports from the rooms below it, and from itself."""

# The package's own __init__ hands on what checking holds, and is no room.
SOURCES = sorted(set((ROOT / "regcheck").rglob("*.py")) - {ROOT / "regcheck" / "__init__.py"})


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def imports(path: object) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((ROOT / str(path)).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "regcheck":
            found |= {f"regcheck.{alias.name}" for alias in node.names} - {"regcheck.__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def level(room: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_imports_only_from_the_layers_below(path: object) -> None:
    parts = (ROOT / str(path)).relative_to(ROOT / "regcheck").parts
    room = parts[0].removesuffix(".py")
    for module in imports(path):
        if module.startswith("regcheck."):
            other = room_of(module)
            assert other == room or level(other) < level(room), f"{room} imports {other}"


@pytest.mark.parametrize(
    ("package", "importers"),
    [
        ("torch", {"measured.py", "modules.py", "noise.py", "shadow.py", "torch_trainer.py"}),
        ("rich", {"report/terminal.py"}),
        ("click", {"cli.py"}),
        ("yaml", {"spec/loading.py", "spec/rewriting.py"}),
    ],
)
def test_package_has_one_importer(package: str, importers: set[str]) -> None:
    found = {
        path.relative_to(ROOT / "regcheck").as_posix()
        for path in SOURCES
        if any(module.split(".")[0] == package for module in imports(path))
    }
    assert found == importers


@pytest.mark.parametrize(
    "room",
    [
        *("errors", "convention", "spelling", "training", "concerns", "causes", "matching"),
        *("formula", "cause_formula", "worked"),
    ],
)
def test_ground_has_no_third_party_import(room: str) -> None:
    for module in imports(ROOT / "regcheck" / f"{room}.py"):
        assert module.split(".")[0] in {"regcheck", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["explain"],
        ["explain", "--list"],
        ["explain", "decoupled"],
        ["explain", "configs/penguins.yaml"],
        ["run", "no-such-file.yaml"],
    ],
    ids=" ".join,
)
def test_command_starts_without_torch_and_numpy(arguments: list[str]) -> None:
    script = (
        "import sys; from regcheck.cli import exit_code;"
        f"exit_code({arguments!r});"
        "sys.exit('+'.join(name for name in ('torch', 'numpy') if name in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr
