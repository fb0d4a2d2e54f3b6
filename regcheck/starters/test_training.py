"""Run by `pytest`: fails with the first step that differs, and the cause."""

from pathlib import Path

import regcheck

HERE = Path(__file__).parent


def test_numpy_and_torch_agree():
    """Hold that both sides of the spec follow the same rule at every step."""
    regcheck.assert_equivalent(HERE / "training.yaml")
