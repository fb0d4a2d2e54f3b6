"""A run from spec to verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import regcheck
from regcheck.checking import check
from regcheck.errors import InputError
from regcheck.problem.problem import Step
from regcheck.trainers.numpy_trainer import NumpyTrainer, State
from regcheck.trainers.torch_trainer import TorchTrainer

Spec = dict[str, Any]


def test_check_takes_a_mapping_and_leaves_it_as_it_was(small: Spec) -> None:
    before = repr(small)
    report = regcheck.check(small)
    assert report.verdict == "equivalent"
    assert repr(small) == before


def test_check_is_a_function_after_its_module_is_loaded(small: Spec) -> None:
    assert regcheck.check(small).verdict == regcheck.check(small).verdict == "equivalent"
    with pytest.raises(AttributeError):
        regcheck.nothing_of_this_name  # noqa: B018


def test_check_raises_what_is_wrong_with_a_mapping(small: Spec) -> None:
    with pytest.raises(InputError, match="lr: must be a number ≥ 0, got -1"):
        check(small | {"lr": -1})


def test_assert_equivalent_passes_in_silence(
    small: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    regcheck.assert_equivalent(small)
    assert capsys.readouterr() == ("", "")


def test_assert_equivalent_raises_with_the_report(small: Spec) -> None:
    with pytest.raises(AssertionError) as raised:
        regcheck.assert_equivalent(small | {"convention": "doubled"})
    assert "DIVERGED at step 1 of 3" in str(raised.value)
    assert "× bound" in str(raised.value)


def test_assert_equivalent_raises_where_nothing_was_compared(small: Spec) -> None:
    with pytest.raises(AssertionError, match="INCONCLUSIVE"):
        regcheck.assert_equivalent(small | {"batch_size": 9, "drop_last": True})


def test_progress_hears_of_every_step(small: Spec) -> None:
    heard: list[tuple[int, int]] = []
    check(small, progress=lambda step, total: heard.append((step, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("convention", "stage", "step"),
    [
        ({"divide_penalty_by": "batch"}, "penalty", 1),
        ({"divide_penalty_by": "dataset"}, "penalty", 1),
        ({"penalty_factor": 2}, "penalty", 1),
        ({"penalty_factor": -1}, "penalty", 1),
        ({"penalty_factor": 0}, "penalty", 1),
        ({"penalize_bias": False}, "penalty", 1),
        ({"penalty_norm": "unsquared"}, "penalty", 1),
        ({"decay": "decoupled-unscaled"}, "penalty", 1),
        ({"decay": "after-update"}, "penalty", 1),
        ({"decay": "after-momentum"}, "optimizer", 2),
        ({"decay": "decoupled"}, "optimizer", 2),
        ({"loss_reduction": "sum"}, "gradient", 1),
        ({"loss_factor": 0.5}, "gradient", 1),
        ({"momentum_form": "dampened"}, "optimizer", 1),
        ({"update_order": "bias-first"}, "gradient", 1),
    ],
    ids=str,
)
def test_each_key_diverges_at_its_own_first_step_and_stage(
    small: Spec, convention: Spec, stage: str, step: int
) -> None:
    momentum = {"optimizer": {"name": "sgd", "momentum": 0.9}}
    report = check(small | momentum | {"convention": convention})
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert (report.first_divergence.stage, report.first_divergence.step) == (stage, step)


def test_lr_inside_differs_only_once_the_lr_changes(small: Spec) -> None:
    spec = small | {
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "epochs": 6,
        "convention": {"momentum_form": "lr-inside"},
    }
    assert check(spec).verdict == "equivalent"
    report = check(spec | {"lr_schedule": {"kind": "step", "every": 3, "factor": 0.1}})
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (4, "optimizer")


def test_before_clipping_differs_only_where_clipping_acts(small: Spec) -> None:
    spec = small | {"convention": {"decay": "before-clipping"}}
    assert check(spec | {"clip_norm": 1e6}).verdict == "equivalent"
    report = check(spec | {"clip_norm": 0.5})
    assert report.first_divergence is not None
    assert (report.first_divergence.step, report.first_divergence.stage) == (1, "optimizer")


def test_penalty_in_loss_diverges_in_the_reported_loss_alone(small: Spec) -> None:
    report = check(small | {"convention": {"penalty_in_loss": True}})
    assert report.verdict == "diverged"
    assert report.first_divergence is None
    assert report.first_loss_divergence is not None
    at = report.first_loss_divergence.at
    # λ/2 (‖w‖² + b²) at the start.
    expected = 0.25 * (0.25 + 0.09 + 0.01)
    assert at.scratch - at.framework == pytest.approx(expected, rel=1e-12)
    only = small | {"convention": {"penalty_in_loss": True}, "compare": ["parameters"]}
    assert check(only).verdict == "equivalent"


def test_compare_loss_alone_judges_no_parameter(small: Spec) -> None:
    report = check(small | {"convention": {"penalty_factor": 2}, "compare": ["loss"]})
    assert report.first_divergence is not None
    assert report.verdict == "equivalent"


def test_tolerance_is_the_number_of_bounds_allowed(small: Spec) -> None:
    doubled = small | {"convention": "doubled"}
    ratio = max(tensor.ratio for tensor in check(doubled).comparison.trace[0].tensors.values())
    above = check(doubled | {"epochs": 1, "tolerance": {"rounding": ratio * 1.01}})
    below = check(doubled | {"epochs": 1, "tolerance": {"rounding": ratio * 0.99}})
    assert (above.verdict, below.verdict) == ("equivalent", "diverged")


def test_both_sides_blowing_up_is_inconclusive_from_there(small: Spec) -> None:
    report = check(small | {"lr": 1e6, "epochs": 100})
    assert report.verdict == "inconclusive"
    assert report.first_divergence is None
    assert report.comparison.first_unjudged is not None
    assert (
        report.comparison.compared
        == report.comparison.first_unjudged - 1
        == len(report.comparison.trace) - 1
    )
    assert "infinite, or too near it" in report.reason


def test_a_divergence_stands_whatever_blows_up_later(small: Spec) -> None:
    report = check(small | {"lr": 1e6, "epochs": 100, "convention": "doubled"})
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert report.first_divergence.step == 1
    assert report.comparison.first_unjudged is not None


def test_one_side_alone_not_finite_is_a_divergence(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TorchTrainer.step

    def poisoned(self: TorchTrainer, batch: Any) -> Step:
        step = real(self, batch)
        if batch.step == 2:
            step.after["weight"][0, 1] = np.nan
        return step

    monkeypatch.setattr(TorchTrainer, "step", poisoned)
    report = check(small)
    assert report.verdict == "diverged"
    assert report.first_divergence is not None
    assert report.first_divergence.step == 2
    assert report.first_divergence.at.index == (0, 1)
    assert report.first_divergence.at.ratio == np.inf


def test_loss_that_is_infinite_on_both_sides_is_not_judged(small: Spec) -> None:
    # Residuals of 1e180 square beyond float64; the parameters stay finite.
    data = {"X": [[1.0], [2.0]], "y": [1e180, 2e180]}
    spec = small | {"data": data, "init": "zeros", "lr": 1e-3, "epochs": 2}
    report = check(spec)
    assert report.verdict == "inconclusive"
    assert report.comparison.first_loss_unjudged == 1
    assert report.comparison.first_unjudged is None
    assert check(spec | {"compare": ["parameters"]}).verdict == "equivalent"


def test_initial_parameters_that_differ_are_a_divergence_of_their_own(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TorchTrainer.parameters

    def shifted(self: TorchTrainer) -> Any:
        return {name: tensor + 1e-6 for name, tensor in real(self).items()}

    monkeypatch.setattr(TorchTrainer, "parameters", shifted)
    report = check(small)
    assert report.first_divergence is not None
    assert report.first_divergence.stage == "initial"
    assert report.first_divergence.step == 1


def test_final_holds_parameters_loss_and_accuracies() -> None:
    spec = {
        "data": {"synthetic": {"rows": 50, "features": 2, "seed": 1}, "test": 0.2},
        "model": "logistic",
        "lr": 0.5,
        "epochs": 30,
    }
    report = check(spec)
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


def test_lockstep_feeds_the_velocity_with_the_frameworks_parameters(
    small: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A scratch side that starts elsewhere drifts, but each local step is the same rule's.
    real = NumpyTrainer.start

    def shifted(self: NumpyTrainer) -> State:
        state = real(self)
        moved = {name: tensor + 1e-3 for name, tensor in state.parameters.items()}
        return state._replace(parameters=moved)

    monkeypatch.setattr(NumpyTrainer, "start", shifted)
    momentum = {"optimizer": {"name": "sgd", "momentum": 0.9}, "epochs": 5}
    report = check(small | momentum)
    assert report.first_divergence is not None
    assert report.first_divergence.stage == "initial"
    assert all(
        tensor.ratio < 1 for row in report.comparison.trace for tensor in row.tensors.values()
    )
    assert report.comparison.drift.largest > 1e-4


@pytest.mark.parametrize(("digits", "stage"), [(3, None), (5, "initial")])
def test_start_is_judged_by_the_same_limit(
    small: Spec, monkeypatch: pytest.MonkeyPatch, digits: int, stage: str | None
) -> None:
    real = NumpyTrainer.start

    def shifted(self: NumpyTrainer) -> State:
        state = real(self)
        # The last digit of 1 is two bounds, which are u |w| here: six of them pass, ten do not.
        moved = {name: w + digits * 2.0**-52 for name, w in state.parameters.items()}
        return state._replace(parameters=moved)

    monkeypatch.setattr(NumpyTrainer, "start", shifted)
    report = check(small | {"init": {"constant": 1.0}})
    found = report.first_divergence
    assert (found and found.stage) == stage


def test_stages_of_a_step_that_cannot_be_judged_are_not_told(small: Spec) -> None:
    report = check(small | {"lr": 1e6, "epochs": 100})
    assert report.comparison.first_unjudged is not None
    assert report.comparison.first_by_stage == {}


def test_sample_is_step_1_where_nothing_diverges(small: Spec) -> None:
    report = check(small)
    assert report.comparison.sample is not None
    assert report.comparison.sample.step == 1
    assert report.to_dict()["sample"]["step"] == 1


def test_max_drift_of_a_blow_up_is_no_number(small: Spec) -> None:
    report = check(small | {"lr": 1e6, "epochs": 1000})
    last = [tensor.drift for tensor in report.comparison.trace[-1].tensors.values()]
    if any(np.isnan(last)):
        assert np.isnan(report.comparison.drift.largest)
    else:
        assert report.comparison.drift.largest == max(
            tensor.drift for row in report.comparison.trace for tensor in row.tensors.values()
        )


def test_divergence_names_the_tensor_that_parts(small: Spec) -> None:
    report = check(small | {"convention": {"penalize_bias": False}})
    assert report.first_divergence is not None
    assert report.first_divergence.at.tensor == "bias"
    assert report.first_divergence.within.tensor == "bias"


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


def test_check_takes_arrays_and_numpys_numbers(small: Spec) -> None:
    data = {"X": np.array(small["data"]["X"]), "y": np.array(small["data"]["y"])}
    report = check(small | {"data": data, "lr": np.float64(0.1), "epochs": np.int64(3)})
    assert report.verdict == "equivalent"
    same = check(small).comparison.final["framework"].parameters["weight"]
    assert np.array_equal(report.comparison.final["framework"].parameters["weight"], same)
