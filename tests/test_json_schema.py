"""The spec's JSON Schema: what it lets pass, what it refuses, and that it describes every key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from regcheck import cli
from regcheck.errors import InputError
from regcheck.rules.causes.catalogue import CAUSES
from regcheck.rules.convention import NAMED
from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.spec import from_mapping
from regcheck.spec.json_schema import spec_schema
from regcheck.spec.schema import Spec
from regcheck.spec.sections.training import options_section
from regcheck.spec.yaml_text import parse
from tests.conftest import ROOT, SMALL

SCHEMA = spec_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SPECS = sorted(ROOT.glob("configs/*.yaml"))


def valid(content: object) -> bool:
    return bool(VALIDATOR.is_valid(content))


def test_command_prints_the_schema_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.exit_code(["schema"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == SCHEMA
    assert captured.err == ""


def test_schema_is_one_of_its_draft() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_specs_are_valid_as_yaml_of_either_version_reads_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    VALIDATOR.validate(parse(text, "").content)  # YAML 1.2
    VALIDATOR.validate(yaml.safe_load(text))  # YAML 1.1: 1e-3 is a text


def keys(schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key that a schema has at any level, with its own schema."""
    if isinstance(schema, list):
        for one in schema:
            yield from keys(one)
    elif isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
        for one in schema.values():
            yield from keys(one)


def test_every_key_has_a_description() -> None:
    found = list(keys(SCHEMA))
    assert [name for name, one in found if not one.get("description", "").strip()] == []
    names = {name for name, _ in found}
    assert names >= set(Spec.model_fields)
    for one in OPTIMIZERS:
        assert names >= set(options_section(one).model_fields)


ACCEPTED: list[dict[str, Any]] = [
    {"lr": "1e-3"},
    {"lr": 0},
    {"epochs": "1e3"},
    {"epochs": 1000.0},
    {"data": {"csv": "a.csv", "target": 4, "positive": 1, "standardize": True}},
    {"data": {"npz": "a.npz", "test": "2e-1", "standardize": False}},
    {"data": {"synthetic": {"rows": 10, "features": 2}, "test": {"share": 0.2, "seed": 0}}},
    {"init": "zeros"},
    {"init": {"weight": [1.0, 2.0], "bias": 0}},
    {"init": {"weight": [[1.0, "1e-3"]], "bias": [0]}},
    {
        "model": {"mlp": {"hidden": [1], "head": "linear"}},
        "init": {
            "layers.0.weight": [[1, 2]],
            "layers.0.bias": [1],
            "layers.1.weight": [[1]],
            "layers.1.bias": [0],
        },
    },
    {"model": "softmax", "loss": {"cross_entropy": {"label_smoothing": 0.1}}},
    {"optimizer": "AdamW"},
    {"optimizer": {"name": "Adam", "betas": [0.9, "1e-1"], "amsgrad": True}},
    {"optimizer": {"name": "adafactor", "eps": ["none", 1e-3]}},
    {"weight_decay": {"weight": "1e-1", "bias": 0}},
    {"shuffle": False},
    {"shuffle": {"seed": 0}},
    {"clip_norm": "none", "lr_schedule": "none"},
    {"lr_schedule": {"kind": "list", "values": ["1e-1", 0.5]}},
    {"dtype": {"scratch": "float64", "framework": "float32"}},
    {"convention": {"penalty_factor": 2, "bias_correction": "compounded"}},
    {"scratch": "code/my train.py:train", "framework": "m.py:build"},
    {"scratch": "adamw", "framework": "m.py:build"},
    {"framework": {"processes": 2, "optimizer": "sgd"}},
    {"tolerance": "exact"},
    {"tolerance": {"weight": "exact", "loss": {"rtol": "1e-5"}}},
    {"expect": {"cause": "penalty-doubled", "step": 1}},
    {"batch_size": 2, "compare": ["loss"]},
    *({"convention": name} for name in NAMED),
    *({"optimizer": name} for name in OPTIMIZERS),
    *({"expect": {"cause": name}} for name, one in CAUSES.items() if not one.fitted),
]

REFUSED: list[dict[str, Any]] = [
    {"lrr": 1},
    {"lr": "O.1"},
    {"lr": -1},
    {"lr": "-1e-3"},
    {"lr": True},
    {"lr": [0.1]},
    {"lr": None},
    {"epochs": 0},
    {"epochs": 1.5},
    {"batch_size": "half"},
    {"batch_size": 0},
    {"data": {"csv": "a.csv", "tarjet": "y"}},
    {"data": {"csv": "a.csv"}},
    {"data": {"X": [1.0], "y": [1.0]}},
    {"data": {"synthetic": {"rows": "many", "features": 1}}},
    {"data": {"csv": "a.csv", "target": "y", "test": 1.5}},
    {"model": "logistics"},
    {"model": "mlp"},
    {"model": {"mlp": {"hidden": []}}},
    {"model": {"mlp": {"hidden": [4], "activation": "elu"}}},
    {"loss": "bec"},
    {"bias": 0},
    {"init": "ones"},
    {"init": {"normal": 1}},
    {"init": {"layers.0.weights": [[1]]}},
    {"optimizer": "adamv"},
    {"optimizer": {"momentum": 0.9}},
    {"optimizer": {"name": "sgd", "momentun": 0.9}},
    {"optimizer": {"name": "sgd", "betas": [0.9, 0.9]}},
    {"optimizer": {"name": "adam", "betas": [0.9]}},
    {"weight_decay": -1},
    {"weight_decay": {"weight": 1, "bais": 1}},
    {"shuffle": True},
    {"lr_schedule": {"kind": "stepp"}},
    {"lr_schedule": {"kind": "step", "evry": 1}},
    {"clip_norm": 0},
    {"dtype": "float16"},
    {"convention": "keras"},
    {"convention": {"decay": "coupled"}},
    {"scratch": "train"},
    {"framework": {"learning_rate": 1}},
    {"framework": "my.module.build"},
    {"compare": ["params"]},
    {"tolerance": {"rounding": 0}},
    {"tolerance": {"exact": True}},
    {"expect": {"verdict": "diverges"}},
    {"expect": {"cause": "penalty-dubled"}},
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_what_a_spec_may_say_is_valid(changes: dict[str, Any]) -> None:
    VALIDATOR.validate(SMALL | changes)


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_misspelled_keys_and_wrong_types_are_refused_as_the_command_refuses_them(
    changes: dict[str, Any],
) -> None:
    assert not valid(SMALL | changes)
    with pytest.raises(InputError):
        from_mapping(SMALL | changes)


@pytest.mark.parametrize("key", ["data", "lr"])
def test_missing_key_is_refused(key: str) -> None:
    assert not valid({name: value for name, value in SMALL.items() if name != key})


def test_what_the_schema_refuses_in_these_cases_alone_it_refuses_for_their_change() -> None:
    assert valid(SMALL)
    from_mapping(SMALL)
