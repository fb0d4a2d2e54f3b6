"""Golden runs: torch's steps, recorded once, so that an upgrade which changes them shows.

A recording holds torch's parameters after each step, on its own trajectory, and its losses. It is
compared as a scratch side whose steps are the recorded ones: torch takes each step once more from
the recorded parameters, so that what differs is a step and no accumulated rounding, and a change of
the rule is named as any other.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from regcheck.errors import Complaint, InputError, Place, RunError, UsageError
from regcheck.problem.data.npz import BROKEN
from regcheck.problem.problem import Array, Problem
from regcheck.spec import LoadedSpec, Spec
from regcheck.spec.dtype import Dtype
from regcheck.spec.sections.training import ConventionKeys
from regcheck.trainers.lockstep import Steps
from regcheck.writing import write_whole

MOST_NUMBERS = 2**26
"""Numbers that a recording may hold: 512 MiB before they are packed."""

VERSION = 1
"""Of the file's layout."""

SUFFIX = ".npz"
"""How a recording's file ends."""

UNRECORDED = {"compare", "convention", "data", "expect", "golden", "scratch", "tolerance"}
"""Keys of a spec that do not change what torch does; the data have a digest of their own."""


class Golden(NamedTuple):
    """A recording.

    Attributes:
        settings: the spec's keys that torch's training depends on, in full form.
        digest: of the data, the order of the samples, and the start.
        environment: in which it was made.
        losses: (steps,), NaN where torch reports none.
        parameters: (steps, ..) of each tensor.
    """

    settings: dict[str, Any]
    digest: str
    environment: dict[str, Any]
    losses: Array
    parameters: dict[str, Array]

    def title(self, name: str) -> str:
        """Name the recording, and what made it."""
        return f"{name}, recorded with torch {self.environment['torch']}"


class Recording:
    """Torch's steps as they are taken."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.parameters: dict[str, list[Array]] = {}

    def take(self, steps: Steps, total: int) -> None:
        """Keep torch's step on its own trajectory.

        Raises:
            RunError: that is more than a recording may hold.
        """
        own = steps.framework_own
        numbers = total * sum(w.size for w in own.after.values())
        if numbers > MOST_NUMBERS:
            raise RunError(
                f"--record: {numbers:,} numbers in {total:,} steps are too many for a recording, "
                f"which holds {MOST_NUMBERS:,}; record fewer epochs"
            )
        self.losses.append(np.nan if own.loss is None else own.loss)
        for name, w in own.after.items():
            self.parameters.setdefault(name, []).append(np.array(w))

    def golden(self, spec: Spec, problem: Problem, environment: Mapping[str, Any]) -> Golden:
        """Return the recording, once all steps are taken."""
        return Golden(
            settings_of(spec),
            digest_of(problem),
            dict(environment),
            np.array(self.losses),
            {name: np.stack(steps) for name, steps in self.parameters.items()},
        )


def settings_of(spec: Spec) -> dict[str, Any]:
    """Return the keys of a spec that torch's training depends on, with their defaults."""
    found: dict[str, Any] = json.loads(spec.model_dump_json(exclude=UNRECORDED))
    return found


def digest_of(problem: Problem) -> str:
    """Return a digest of the data, of the samples of each step, and of the start."""
    digest = hashlib.sha256()
    arrays = [problem.X, problem.y, *(problem.initial[name] for name in sorted(problem.initial))]
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
    every = np.arange(len(problem.y), dtype="<i8")
    for batch in problem.schedule.batches():
        for rows in batch.micro_batches:
            digest.update(every[rows].tobytes())
    return digest.hexdigest()


def write_golden(path: Path, golden: Golden) -> None:
    """Write a recording; it replaces an older one, and nothing else.

    Raises:
        UsageError: another file stands there, or it cannot be written.
    """
    if path.exists():
        try:
            read_golden(path)
        except InputError:
            text = f"--record: {path} is there already and is no recording; it stays as it is"
            raise UsageError(text) from None
    about = golden._asdict() | {"version": VERSION}
    losses, parameters = about.pop("losses"), about.pop("parameters")
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8),
        losses=losses,
        **{f"after {name}": steps for name, steps in parameters.items()},
    )
    write_whole(path, [packed.getvalue()])


def read_golden(path: Path) -> Golden:
    """Read a recording.

    Raises:
        InputError: it is not there, or is none.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(bytes(file["about"]))
            if about.pop("version") != VERSION:
                raise ValueError
            parameters = {
                name.removeprefix("after "): file[name]
                for name in file.files
                if name.startswith("after ")
            }
            return Golden(**about, losses=file["losses"], parameters=parameters)
    except FileNotFoundError:
        raise problem_with(path, "no such file") from None
    except (*BROKEN, KeyError, AttributeError):
        raise problem_with(path, "is no recording of this version of regcheck") from None


def golden_of(loaded: LoadedSpec) -> Golden:
    """Read the recording that a spec names.

    Raises:
        InputError: it is not there, or is none; it says how to make it.
    """
    path = loaded.folder / str(loaded.spec.golden)
    if path.suffix.lower() != SUFFIX:
        text = f"must be a recording, a {SUFFIX} file, got {loaded.spec.golden!r}"
        raise loaded.error(("golden",), text)
    try:
        return read_golden(path)
    except InputError as error:
        how = f"record it: `regcheck run {loaded.name} --record {path}`"
        text = f"{path}: {error.complaints[0].text}; {how}"
        raise loaded.error(("golden",), text) from None


def problem_with(path: Path, text: str) -> InputError:
    """Make an error about a recording."""
    return InputError([Complaint(Place(str(path)), text)])


class Recorded:
    """The recorded steps as a scratch side: what a spec's `scratch` is in a golden run."""

    def __init__(self, name: str, golden: Golden) -> None:
        self.golden, self.recording = golden, golden.title(name)

    def __call__(self, problem: object) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        """Yield torch's parameters and loss after each recorded step."""
        for step, loss in enumerate(self.golden.losses):
            yielded: dict[str, Any] = {
                name: steps[step] for name, steps in self.golden.parameters.items()
            }
            yield yielded if np.isnan(loss) else {**yielded, "loss": float(loss)}


def recorded_side(loaded: LoadedSpec, problem: Problem, golden: Golden) -> LoadedSpec:
    """Return the spec with the recorded steps as its scratch side.

    Raises:
        InputError: the recording is of another training.
    """
    spec, name = loaded.spec, str(loaded.spec.golden)
    changed = changes(golden, spec, problem)
    if changed:
        renew = f"`regcheck run {loaded.name} --record {loaded.folder / name}`"
        raise loaded.error(
            ("golden",), f"{name} is of another training: {changed}; if that is meant, {renew}"
        )
    dtype = Dtype.model_validate(problem.framework_dtype)
    keys = {
        "scratch": Recorded(name, golden),
        "convention": ConventionKeys(),
        "dtype": dtype,
        "expect": None,
        "golden": None,
    }
    return loaded._replace(spec=spec.model_copy(update=keys))


def changes(golden: Golden, spec: Spec, problem: Problem) -> str:
    """Say in what a recording is of another training; empty where it is of this one."""
    now = settings_of(spec)
    found = [
        f"{key} was {json.dumps(golden.settings.get(key))}, and is {json.dumps(now.get(key))}"
        for key in sorted(now.keys() | golden.settings.keys())
        if now.get(key) != golden.settings.get(key)
    ]
    shapes = {name: steps.shape[1:] for name, steps in golden.parameters.items()}
    if not found and shapes != {name: w.shape for name, w in problem.initial.items()}:
        found.append("its tensors are others")
    if not found and golden.digest != digest_of(problem):
        found.append("the data, the order of the samples or the initial parameters have changed")
    return "; ".join(found)
