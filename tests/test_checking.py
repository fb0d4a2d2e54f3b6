"""A run from spec to verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import regcheck
from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.report.terminal.short import short_text
from regcheck.trainers.numpy_state import State
from regcheck.trainers.numpy_trainer import NumpyTrainer
from tests.conftest import Spec, told
from tests.first_steps import found

MOMENTUM: Spec = {"optimizer": {"name": "sgd", "momentum": 0.9}}


def test_check_takes_a_mapping_and_leaves_it_as_it_was(small: Spec) -> None:
    before = repr(small)
    assert regcheck.check(small).verdict == regcheck.check(small).verdict == "equivalent"
    assert repr(small) == before
    with pytest.raises(AttributeError):
        regcheck.nothing_of_this_name  # noqa: B018


def test_check_raises_what_is_wrong_with_a_mapping(small: Spec) -> None:
    with pytest.raises(InputError, match="lr: must be a number ≥ 0, got -1"):
        check(small | {"lr": -1})


def test_check_takes_arrays_and_numpys_numbers(small: Spec) -> None:
    data = {"X": np.array(small["data"]["X"]), "y": np.array(small["data"]["y"])}
    report = check(small | {"data": data, "lr": np.float64(0.1), "epochs": np.int64(3)})
    assert report.verdict == "equivalent"
    ends = [one.comparison.final["framework"] for one in (report, check(small))]
    assert np.array_equal(ends[0].parameters["weight"], ends[1].parameters["weight"])


def test_assert_equivalent_passes_in_silence_and_raises_with_the_report(
    small: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    regcheck.assert_equivalent(small)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(AssertionError) as raised:
        regcheck.assert_equivalent(small | {"convention": "doubled"})
    line, empty, *report = str(raised.value).splitlines()
    assert line.startswith("DIVERGED at step 1: scratch doubles the weight decay")
    assert line.endswith("(penalty-doubled)")
    assert empty == ""
    assert report == short_text(check(small | {"convention": "doubled"})).splitlines()
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        regcheck.assert_equivalent(small | {"batch_size": 9, "drop_last": True})


def test_progress_hears_of_every_step(small: Spec) -> None:
    heard: list[tuple[int, int]] = []
    check(small, progress=lambda step, total: heard.append((step, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_penalty_in_loss_diverges_in_the_reported_loss_alone(small: Spec) -> None:
    spec = small | {"convention": {"penalty_in_loss": True}}
    report = check(spec)
    assert (report.verdict, report.first_divergence) == ("diverged", None)
    at = told(report.first_loss_divergence).at
    # λ/2 (‖w‖² + b²) at the start.
    expected = 0.25 * (0.25 + 0.09 + 0.01)
    assert at.scratch - at.framework == pytest.approx(expected, rel=1e-12)
    assert check(spec | {"compare": ["parameters"]}).verdict == "equivalent"


def test_compare_loss_alone_judges_no_parameter(small: Spec) -> None:
    report = check(small | {"convention": {"penalty_factor": 2}, "compare": ["loss"]})
    assert report.first_divergence is not None
    assert report.verdict == "equivalent"


def test_final_holds_parameters_loss_and_accuracies() -> None:
    data = {"synthetic": {"rows": 50, "features": 2, "seed": 1}, "test": 0.2}
    report = check({"data": data, "model": "logistic", "lr": 0.5, "epochs": 30})
    final = report.comparison.final["framework"]
    assert final.parameters["weight"].shape == (1, 2)
    assert final.loss == report.comparison.trace[-1].framework_loss
    train, test = final.accuracy["train"], final.accuracy["test"]
    assert train is not None
    assert test is not None
    assert train > 0.5
    assert train * 40 == pytest.approx(round(train * 40))
    assert test * 10 == pytest.approx(round(test * 10))


def test_environment_names_versions_and_threads(small: Spec) -> None:
    environment = check(small).environment
    assert set(environment) == {"python", "numpy", "torch", "threads", "platform"}
    assert environment["threads"] == 1


def start_off_by(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    real = NumpyTrainer.start

    def shifted(self: NumpyTrainer) -> State:
        state = real(self)
        return state._replace(parameters={name: w + shift for name, w in state.parameters.items()})

    monkeypatch.setattr(NumpyTrainer, "start", shifted)


def test_lockstep_feeds_the_velocity_with_the_frameworks_parameters(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scratch side that starts elsewhere drifts, but each local step is the same rule's.
    start_off_by(monkeypatch, 1e-3)
    report = check(small | MOMENTUM | {"epochs": 5})
    assert found(report)[:2] == (1, "initial")
    assert all(one.ratio < 1 for row in report.comparison.trace for one in row.tensors.values())
    assert report.comparison.drift.largest > 1e-4


@pytest.mark.parametrize(("digits", "stage"), [(3, None), (5, "initial")])
def test_start_is_judged_by_the_same_limit(
    small: Spec, monkeypatch: pytest.MonkeyPatch, digits: int, stage: str | None
) -> None:
    # The last digit of 1 is two bounds, which are u |w| here: six of them pass, ten do not.
    start_off_by(monkeypatch, digits * 2.0**-52)
    first = check(small | {"init": {"constant": 1.0}}).first_divergence
    assert (first and first.stage) == stage


def test_sample_is_step_1_where_nothing_diverges(small: Spec) -> None:
    report = check(small)
    assert told(report.comparison.sample).step == report.to_dict()["sample"]["step"] == 1


@pytest.mark.slow
def test_check_works_where_gradients_are_switched_off_and_puts_settings_back(small: Spec) -> None:
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.no_grad():
            assert check(small).verdict == "equivalent"
            assert not torch.is_grad_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.get_num_threads() == threads
