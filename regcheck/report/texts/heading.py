"""What a report begins with: the spec, its model, its data, and its training, in words."""

from __future__ import annotations

from regcheck.report.result import Report
from regcheck.report.texts.text import count
from regcheck.spec import Spec

MOST_CLASSES = 6
"""Classes that are named."""


def subject(report: Report) -> str:
    """Name the spec, the model, and the precision."""
    spec = report.spec
    scratch, framework = report.dtypes
    dtype = scratch if scratch == framework else f"NumPy {scratch} against torch {framework}"
    kind = ", ".join(kind_of(spec)) or "your own model"
    return f"{report.name}: {kind}, {dtype}"


def kind_of(spec: Spec) -> list[str]:
    """Describe the built-in model and its loss; nothing where they are the user's own."""
    model = spec.architecture
    if model is None:
        return []
    name = model.name
    if model.hidden:
        units = ", ".join(map(str, model.hidden))
        name = f"mlp of {units} {model.activation} units and a {model.head} head"
    smoothing, weight = spec.loss_options
    loss = spec.loss_name
    loss += f" with label smoothing {smoothing:g}" if smoothing else ""
    loss += f"{' and' if smoothing else ' with'} class weights" if weight is not None else ""
    return [name, loss]


def short_size(report: Report) -> str:
    """Count the samples and the steps, and say how large the batches are."""
    training, steps = report.training, report.comparison.steps
    batch = max(training.batch_rows, default=0)
    batches = f" in batches of {batch:,}" if batch < training.train_rows else ""
    return f"{count(training.train_rows, 'sample')}{batches}, {count(steps, 'step')}"


def training_size(report: Report) -> str:
    """Describe the samples, the steps and the batches."""
    shape = report.row_shape
    if len(shape) == 1:
        row = count(shape[0], "feature")
    else:
        row = " x ".join(map(str, shape)) + " numbers" if shape else "1 number"
    rows = count(report.training.train_rows, "training sample")
    if report.classes:
        row += f", {classes_text(report)}"
    epochs, steps = count(report.spec.epochs, "epoch"), count(report.comparison.steps, "step")
    return f"{rows} of {row}, {epochs}, {steps}, {batches_text(report)}"


def batches_text(report: Report) -> str:
    """Describe the batches, and how they are divided."""
    spec, training, steps = report.spec, report.training, report.comparison.steps
    batch, *rest = training.batch_rows
    if steps == 0:
        batches = "no batch"
    elif batch == training.train_rows and not rest:
        batches = "full batch"
    else:
        last = f" (the last of an epoch {rest[0]})" if rest else ""
        batches = f"batches of {batch:,}{last}"
    if spec.accumulate > 1:
        batches += f", in micro-batches of {spec.batch_size}"
    if spec.processes > 1:
        batches += f", each shared by {spec.processes} processes"
    return batches


def classes_text(report: Report) -> str:
    """Count the classes of the targets, and name them in their order."""
    classes = report.classes
    text = f"{len(classes):,} classes"
    if report.classes_are_numbers:
        return text
    more = ", .." if len(classes) > MOST_CLASSES else ""
    return f"{text} ({', '.join(classes[:MOST_CLASSES])}{more})"
