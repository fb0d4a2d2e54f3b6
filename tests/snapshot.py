"""The reports of all configs and of many random runs, as files: before and after a refactoring.

Run it in both checkouts, each with its own package first on the path, and compare the folders:

    python tests/snapshot.py --out /tmp/before
    python tests/snapshot.py --out /tmp/after
    diff -r /tmp/before /tmp/after

Each run makes two files: NAME.json, as `regcheck run --json` prints it, and NAME.txt, as it is
shown to people. Times and the environment are left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from regcheck.checking import check
from regcheck.report.result import Report
from regcheck.report.terminal.details import report_text
from tests import judged_modules, random_functions, random_modules, random_specs

CONFIGS = Path("configs")
Runs = Iterator[tuple[str, Callable[[], Report]]]


def configs() -> Runs:
    for path in sorted(CONFIGS.glob("*.yaml")):
        yield f"config-{path.stem}", partial(check, path)


def specs(count: int, folder: Path) -> Runs:
    for seed in range(count):
        draw = random_specs.mismatched_spec if seed % 2 else random_specs.matched_spec
        yield f"spec-{seed}", partial(check, draw(seed, folder))


def functions(count: int, folder: Path) -> Runs:
    for seed in range(count):
        case = random_functions.random_case(seed, folder)
        yield f"function-{seed}", partial(check, case.spec, scratch=case.code.train)


def modules(count: int) -> Runs:
    for seed in range(count):
        yield f"module-{seed}", partial(judged_modules.run, random_modules.random_case(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--specs", type=int, default=300)
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--modules", type=int, default=100)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / kind for kind in ("specs", "functions")]
        for folder in folders:
            folder.mkdir()
        runs = chain(
            configs(),
            specs(chosen.specs, folders[0]),
            functions(chosen.functions, folders[1]),
            modules(chosen.modules),
        )
        for name, run in runs:
            report = run()
            found = report.to_dict()
            del found["environment"]
            text = json.dumps(found, indent=1, ensure_ascii=False)
            (chosen.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            (chosen.out / f"{name}.txt").write_text(report_text(report), encoding="utf-8")


if __name__ == "__main__":
    main()
