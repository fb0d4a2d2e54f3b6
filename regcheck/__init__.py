"""regcheck checks whether two trainings follow the same rule; if not, where and why they differ.

`check` runs a spec and gives a report; `assert_equivalent` raises where its sides differ.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regcheck.checking import check
    from regcheck.report.result import Report
    from regcheck.testing import assert_equivalent

__all__ = ["Report", "__version__", "assert_equivalent", "check"]
HOMES = {"Report": "report.result", "assert_equivalent": "testing", "check": "checking"}
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded when first used: `regcheck explain` needs neither torch nor NumPy.
    if name not in HOMES:
        raise AttributeError(f"module 'regcheck' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"regcheck.{HOMES[name]}"), name)
