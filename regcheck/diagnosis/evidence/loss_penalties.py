"""What is known of a penalty in one side's loss that is no weight-decay term of the other's."""

from __future__ import annotations

from regcheck.diagnosis.evidence.record import Evidence
from regcheck.diagnosis.fits.loss_inputs import places
from regcheck.diagnosis.records import Run
from regcheck.diagnosis.reported_loss import (
    NAMED_SHARES,
    DataLoss,
    Penalty,
    fitted_penalty,
    reported_at,
    reporting_of,
)


def torchs_penalty(run: Run) -> Evidence | None:
    """Say by which penalty torch's loss is larger than the scratch side's; None where it is not.

    So it is where a user's own loss function has it: ℓ_torch = ℓ_scratch + κ/2 ‖w‖².
    """
    losses = reported_at(run, next(places(run, (), None)))
    torchs = losses.shown.framework
    penalty = fitted_penalty(losses, torchs - losses.scratch)
    if penalty is None:
        return None
    less = penalty._replace(values=-penalty.values)
    if reporting_of(losses, DataLoss((), torchs), less) is None:
        return None
    terms = strengths_text(penalty, "½·{} Σ{}²")
    return Evidence(
        f"torch's loss is the scratch side's + {terms}",
        f", in all {len(torchs):,} steps: look for a weight-decay term in torch's loss function "
        "that the other loss has not.",
    )


def l1_penalty(run: Run) -> Evidence | None:
    """Say by which L1 penalty the scratch side's loss is larger than c times torch's, if it is.

    ℓ_scratch = a ℓ_torch + c Σ|w|, with the a that people choose.
    """
    losses = reported_at(run, next(places(run, (), None)))
    for a in NAMED_SHARES:
        base = DataLoss((), a * losses.shown.framework, a)
        penalty = fitted_penalty(losses, losses.scratch - base.values, losses.absolutes())
        if penalty is not None and reporting_of(losses, base, penalty):
            torchs = "torch's" if a == 1 else f"{a:g} times torch's"
            return Evidence(
                f"the scratch side's loss is {torchs} + {strengths_text(penalty, '{} Σ|{}|')}",
                f", in all {len(losses.scratch):,} steps: an L1 penalty, which torch's has not.",
            )
    return None


def strengths_text(penalty: Penalty, form: str) -> str:
    """Write a fitted penalty, each tensor's term in the same form of its κ and its name."""
    fits = {name: fit.plain((0.0,)).factor for name, fit in penalty.strengths.items()}
    return " + ".join(form.format(f"{kappa:.6g}", name) for name, kappa in fits.items() if kappa)
