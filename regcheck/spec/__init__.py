"""Specs: what may stand in one (`schema` and the modules it is made of), and how it is read."""

from regcheck.spec.read import LoadedSpec, from_mapping, read_spec
from regcheck.spec.schema import Spec

__all__ = ["LoadedSpec", "Spec", "from_mapping", "read_spec"]
