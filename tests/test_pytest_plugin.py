"""The pytest plugin, in a pytest of its own: what it collects, and how each outcome looks there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from regcheck import cli
from tests.conftest import SMALL

pytest_plugins = ["pytester"]

DOUBLED = "DIVERGED at step 1: scratch doubles the weight decay"
SPECS: dict[str, tuple[int, dict[str, object]]] = {
    "agrees.regcheck.yaml": (0, {}),
    "broken.regcheck.yaml": (2, {"lrr": 1}),
    "code.regcheck.yaml": (2, {"scratch": "own.py:train"}),
    "control.regcheck.yaml": (0, {"convention": "doubled", "expect": {"verdict": "diverged"}}),
    "doubled.regcheck.yml": (1, {"convention": "doubled"}),
    "missed.regcheck.yaml": (1, {"expect": {"verdict": "diverged", "step": 2}}),
    "nothing.regcheck.yaml": (4, {"batch_size": 9, "drop_last": True}),
    "other.yaml": (1, {"convention": "doubled"}),
}
"""Specs with the exit codes that `regcheck run` has for them."""

OUTCOMES = {0: [], 1: ["failure"], 2: ["error"], 4: ["failure"]}

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run pytest beside all specs, with this plugin and xdist alone."""
    for name, (_, changes) in SPECS.items():
        (pytester.path / name).write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    pytester.makepyfile(own="def train(problem):\n    print('mine')\n    1 / 0\n    yield\n")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("CI", "1")  # pytest then cuts no line of its summary
    plugins = ("-p", "regcheck.pytest_plugin", "-p", "xdist")
    return lambda *arguments: pytester.runpytest_subprocess(*plugins, *arguments)


@pytest.mark.slow
def test_each_spec_has_the_outcome_that_its_exit_code_says(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        "import regcheck\n\ndef test_own():\n    regcheck.assert_equivalent('other.yaml')\n"
    )
    result = run("--junitxml=found.xml")
    result.assert_outcomes(passed=2, failed=4, errors=2)
    cases = ElementTree.parse(pytester.path / "found.xml").iter("testcase")
    found = {case.attrib["name"]: [one.tag for one in case] for case in cases}
    wanted = {name.partition(".")[0]: OUTCOMES[code] for name, (code, _) in SPECS.items()}
    wanted["test_own"] = wanted.pop("other")  # which is no test by itself
    assert found == wanted
    printed = result.stdout.str()
    result.stdout.fnmatch_lines(
        [
            f"FAILED doubled.regcheck.yml::doubled - {DOUBLED} * (penalty-doubled)",
            "FAILED missed.regcheck.yaml::missed - EQUIVALENT over 3 steps: *. Not as expected: *",
            "FAILED nothing.regcheck.yaml::nothing - INCONCLUSIVE: there is no step: *",
            f"FAILED test_*.py::test_own - AssertionError: {DOUBLED} * (penalty-doubled)",
            "ERROR broken.regcheck.yaml::broken - broken.regcheck.yaml:*: lrr: unknown key; *",
            "ERROR code.regcheck.yaml::code - *own.py:train: step 1 of 3: raised Zero*",
        ]
    )
    assert "\n or torch     torch.optim.SGD(lr=0.1, weight_decay=1)" in printed  # of the report
    assert ">       regcheck.assert_equivalent('other.yaml')" in printed
    assert not any(word in printed for word in ("pytest_plugin.py", "testing.py", "_hookexec"))


@pytest.mark.whole
@pytest.mark.slow
def test_specs_are_chosen_by_k_and_by_id_and_shared_among_workers(run: Run) -> None:
    result = run("-n", "2", "-k", "agrees or doubled or broken")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines([f"FAILED doubled.regcheck.yml::doubled - {DOUBLED} *"])
    run("control.regcheck.yaml::control").assert_outcomes(passed=1)


@pytest.mark.slow
def test_collecting_specs_loads_nothing_of_what_runs_them(
    run: Run, pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(
        "import sys\n\ndef pytest_unconfigure():\n"
        "    print([m for m in sys.modules if m.split('.')[0] in ('numpy', 'torch', 'regcheck')])"
    )
    result = run("--collect-only", "-q")
    names = [name for name in SPECS if name != "other.yaml"]
    lines = [f"{name}::{name.partition('.')[0]}" for name in names]
    result.stdout.fnmatch_lines([*lines, "7 tests collected*"])
    result.stdout.fnmatch_lines(["['regcheck', 'regcheck.pytest_plugin']"])


@pytest.mark.parametrize("name", SPECS)
def test_exit_codes_are_those_of_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, changes = SPECS[name]
    (tmp_path / name).write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    (tmp_path / "own.py").write_text("def train(problem):\n    1 / 0\n    yield\n")
    assert cli.exit_code(["run", "--quiet", str(tmp_path / name)]) == code
