"""The JSON Schema of specs (draft 2020-12), by which editors complete keys and mark mistakes.

It is made of the sections' own fields. What depends on several keys, as a tolerance of two kinds,
is left to `regcheck run`.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from regcheck.rules.optimizers.registry import OPTIMIZERS
from regcheck.spec.schema import Spec
from regcheck.spec.sections.fields import Section
from regcheck.spec.sections.init import Init
from regcheck.spec.sections.training import Optimizer, options_section

POWER_OF_TEN = r"([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"
"""Numbers like 1e-3, which readers of YAML 1.1 hand on as text."""


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec."""
    schema = with_numbers(Spec.model_json_schema(schema_generator=Generator))
    return {"$schema": Generator.schema_dialect, "title": "A regcheck spec", **schema}


class Generator(GenerateJsonSchema):
    """Makes the schema from the sections, with their short forms."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return a section's mapping, each key with its description, or its short form."""
        section = schema["cls"]
        mapping = super().model_schema(schema)
        if not issubclass(section, Section):
            return mapping
        for key, form in mapping["properties"].items():
            form["description"] = section.description(key)
        if issubclass(section, Init):
            mapping = with_tensors(mapping)
        forms = [mapping]
        if issubclass(section, Optimizer):
            forms = self.optimizer_forms(mapping["properties"]["name"])
        if section.SHORT is not None:
            forms.insert(0, self.generate_inner(TypeAdapter(section.SHORT).core_schema))
        return forms[0] if len(forms) == 1 else {"anyOf": forms}

    def optimizer_forms(self, name: JsonSchemaValue) -> list[JsonSchemaValue]:
        """Return the forms of an optimizer: its name, or a mapping of it and its own options."""
        forms: list[JsonSchemaValue] = [{"type": "string", "enum": [*OPTIMIZERS]}]
        forms.append({"type": "string", "pattern": f"^({'|'.join(map(any_case, OPTIMIZERS))})$"})
        for one in OPTIMIZERS:
            options = self.generate_inner(options_section(one).__pydantic_core_schema__)
            options = self.get_schema_from_definitions(options["$ref"]) or options
            called = {**name, "pattern": f"^{any_case(one)}$"}
            properties = {"name": called, **options["properties"]}
            forms.append({**options, "properties": properties, "required": ["name"]})
        return forms

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema without null: a spec has no keys without a value."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Leave out defaults that stand for a missing key."""
        found = super().default_schema(schema)
        if found.get("default") is None:
            found.pop("default", None)
        return found

    def field_title_should_be_set(self, _: Any) -> bool:
        """Leave out titles, which would be the keys once more."""
        return False


LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Limits of numbers in JSON Schema, by pydantic's names, which stay behind a validator of ours."""


def with_numbers(schema: Any) -> Any:
    """Return a schema whose numbers may also be the texts that YAML 1.1 reads some numbers as."""
    if isinstance(schema, list):
        return [with_numbers(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") not in ("number", "integer"):
        return {
            key: one if key in ("default", "enum") else with_numbers(one)
            for key, one in schema.items()
            if not (key == "title" and isinstance(one, str))
        }
    number = {LIMITS.get(key, key): one for key, one in schema.items()}
    head = {key: number.pop(key) for key in ("default", "description") if key in number}
    negative = number.get("minimum", number.get("exclusiveMinimum", -1)) < 0
    text = {"type": "string", "pattern": f"^{'[-+]' if negative else '[+]'}?{POWER_OF_TEN}"}
    return {**head, "anyOf": [number, text]}


def any_case(word: str) -> str:
    """Return a pattern for a word in any case: JSON Schema's have no flags.

    >>> any_case("sgd")
    '[sS][gG][dD]'
    """
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


def with_tensors(mapping: JsonSchemaValue) -> JsonSchemaValue:
    """Let a start give all tensors: numbers, and rows of them."""
    number = {"type": "number"}
    row = {"type": "array", "items": number, "minItems": 1}
    forms = {"anyOf": [number, row, {"type": "array", "items": row, "minItems": 1}]}
    properties = mapping["properties"]
    for name in ("weight", "bias"):
        properties[name] = {**forms, "description": properties[name]["description"]}
    return {**mapping, "patternProperties": {r"^layers\.[0-9]+\.(weight|bias)$": forms}}
