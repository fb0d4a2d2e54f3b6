"""Run by `pytest`: fails while the sides differ, with the first step that does, and the cause."""

from pathlib import Path

import regcheck

HERE = Path(__file__).parent


def test_numpy_and_torch_agree():
    """Pass once both sides of the spec follow the same rule at every step."""
    regcheck.assert_equivalent(HERE / "training.yaml")
