"""The CSV report: every step and tensor, read back to the last bit."""

from __future__ import annotations

import csv

import pytest

from regcheck.checking import check
from regcheck.report.files.step_list import COLUMNS, csv_chunks
from regcheck.report.record import record_of, record_of_error
from tests.conftest import Spec


def test_csv_holds_every_number_of_every_step(small: Spec) -> None:
    record = record_of(check(small | {"convention": "doubled"}))
    assert record.trace is not None
    read = list(csv.DictReader(csv_chunks([record])))
    assert len(read) == 3 * 2
    for line, row in zip(read[::2], record.trace, strict=True):
        one = row.tensors["weight"]
        assert line["tensor"] == "weight"
        assert [int(line[name]) for name in ("step", "epoch", "batch")] == list(row[:3])
        losses = ("loss_scratch", "loss_framework", "loss_ratio", "loss_tolerance_ratio")
        assert [float(line[name]) for name in losses] == list(row[3:7])
        numbers = ("accumulated", "one_step", "bound", "ratio", "tolerance_ratio")
        assert [float(line[name]) for name in numbers] == list(one)


def test_csv_of_several_runs_names_the_spec_of_each_line(small: Spec) -> None:
    one = record_of(check(small))
    other = one._replace(head=one.head | {"spec": 'b, "c"\n.yaml'})
    lines = csv.reader(csv_chunks([one, record_of_error("wrong.yaml", "wrong"), other]))
    assert tuple(next(lines)) == COLUMNS
    assert [line[0] for line in lines] == [one.head["spec"]] * 6 + ['b, "c"\n.yaml'] * 6


@pytest.mark.parametrize("word", ["nan", "inf"])
def test_csv_has_words_that_float_reads_for_what_is_no_number(small: Spec, word: str) -> None:
    text = "".join(csv_chunks([record_of(check(small | {"lr": 1e6, "epochs": 100}))]))
    assert f",{word}," in text or f",{word}\n" in text
