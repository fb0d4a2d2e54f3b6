"""regcheck tells whether two trainings follow the same rule, and if not, where and why.

`check` runs a spec and gives a report; `assert_equivalent` raises where its sides differ.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regcheck.checking import Report, assert_equivalent, check

__all__ = ["Report", "__version__", "assert_equivalent", "check"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded when first used: `regcheck explain` needs neither torch nor NumPy.
    if name not in __all__:
        raise AttributeError(f"module 'regcheck' has no attribute {name!r}")
    from regcheck import checking

    return getattr(checking, name)
