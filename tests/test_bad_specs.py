"""A good spec with another line in the place of one, and files that are no specs."""

from __future__ import annotations

from pathlib import Path

import pytest

from regcheck.cli import exit_code
from tests.refusals import GOOD, Refused, cases, refused, replaced, short

__all__ = ["refused"]  # a fixture

VALUES = cases("""
lr: O.1 => 5:5: lr: must be a number, got 'O.1'
lr: "0.1" => 5:5: lr: must be a number, got '0.1'
lr: 1_000 => 5:5: lr: must be a number, got '1_000'
lr: 1e400 => 5:5: lr: must be a finite number, got inf
lr: .nan => 5:5: lr: must be a number ≥ 0, got nan
lr: -1 => 5:5: lr: must be a number ≥ 0, got -1
lr: true => 5:5: lr: must be a number, got true
lr: => 5:4: lr: has no value
epochs: 1 => 1:1: lr: is required: the learning rate
model: {mlp: {hidden: [16]}} => 1:1: loss: is required where the mlp has no head
model: {logistic: {}} => 4:8: model: must be one of linear, logistic, mlp, softmax, got {
model: svm => 4:8: model: must be one of linear, logistic, mlp, softmax, got 'svm'
model: Logistic
    4:8: model: must be one of linear, logistic, mlp, softmax, got 'Logistic'; did you mean
model: [logistic] => 4:8: model: must be one of linear, logistic, mlp, softmax, got ['logis
model: linear↵loss: bce
    5:7: loss: bce does not fit the model linear, which takes mse; for labels 0 and 1, use
data: [1] => 1:7: data: must be a mapping with one source: csv, npz, synthetic
data: {} => 1:7: data: must have one source: csv, npz, synthetic, or X and y
data: {cvs: a.csv, target: y} => 1:7: data: must have one source: csv, npz, s
data: {csv: a.csv, target: y, npz: b.npz}
    1:7: data: must have exactly one source, got csv and npz
data: {csv: a.csv, target: y, X: [[1]]}
    1:7: data: must have exactly one source, got csv and inline X, y
data: {X: [[1.0]]} => 1:1: data.y: is required: with one number for each row
data: {y: [1.0]} => 1:1: data.X: is required: with one list of numbers
data: {X: [1, 2], y: [1, 0]} => 1:11: data.X: must be a list of rows, like [[2.0]
data: {X: [], y: [1]} => 1:11: data.X: must not be empty, got []
data: {X: [[]], y: [1]} => 1:12: data.X[0]: must not be empty, got []
data: {X: [[1, 2], [1]], y: [1, 0]}
    1:20: data.X[1]: must have 2 numbers like the first row, got 1
data:↵  X:↵    - [1, 2]↵    - [3, 4]↵    - [5, 6]↵    - [7, a]↵  y: [1, 1, 1, 1]
    6:11: data.X[3][1]: must be a number, got 'a'
data: {X: [[1], [.inf]], y: [0, 1]} => 1:18: data.X[1][0]: must be a finite
data: {X: [[1], [.nan]], y: [0, 1]} => 1:18: data.X[1][0]: must be a finite number, got nan
data: {X: [[1], [2]], y: [0, -.inf]} => 1:30: data.y[1]: must be a finite number, got -inf
data: {X: [[1], [2]], y: [.nan, 1]} => 1:27: data.y[0]: must be a finite number, got nan
data: {X: [[1], [2]], y: [0]}
    1:26: data.y: must have one number for each row of X: X has 2 rows, y 1
data: {X: [[1]], y: [[1]]} => 1:22: data.y[0]: must be a number, got [1]
data: {X: [[1]], y: [null]} => 1:22: data.y[0]: has no value
data: {X: [[1], [2]], y: [-1, 1]}
    1:26: data.y: the model logistic needs targets from 0 to 1, got -1 in row 1; replace -1
data: {X: [[1], [2]], y: [0, 2]} => 1:26: data.y: the model logistic needs targets
data: {X: [[1]], y: [0], standardise: true}
    1:26: data.standardise: unknown key; did you mean `standardize`?
data: {X: [[1]], y: [0], standardize: yes} => 1:39: data.standardize: mus
data: {X: [[1]], y: [0], standardize: {ddof: 2}}
    1:46: data.standardize.ddof: must be a whole number ≤ 1, got 2
data: {X: [[1]], y: [0], standardize: {ddof: 1}}
    1:39: data.standardize: ddof 1 needs at least 2 training samples, got 1
data: {X: [[1e308], [-1e308]], y: [0, 1], standardize: true} => 1:56: data.standardize: overflows
data: {X: [[1]], y: [0], test: 0} => 1:32: data.test: must be a share above 0
data: {X: [[1]], y: [0], test: half} => 1:32: data.test: must be a share above
data: {X: [[1]], y: [0], test: {seed: 1}} => 1:26: data.test.share: is req
data: {X: [[1], [2]], y: [0, 1], test: 0.9}
    1:40: data.test: holds out all 2 samples, and none is left to train on
data: {synthetic: {rows: 0, features: 4}}
    1:26: data.synthetic.rows: must be a whole number ≥ 1, got 0
data: {synthetic: 5} => 1:19: data.synthetic: must be a mapping, got 5
data: {synthetic: {rows: 1e9, features: 1e6}}
    1:19: data.synthetic: 1,000,000,000 × 1,000,000 numbers are too many; at most
data: {csv: no.csv, target: y}
    1:13: data.csv: no.csv: no such file; paths are relative to the spec
data: {csv: ., target: y} => 1:13: data.csv:
data: {csv: 5, target: y} => 1:13: data.csv: must be a string, got 5
data: {csv: "", target: y} => 1:13: data.csv: must not be empty, got ''
data: {csv: a.csv} => 1:1: data.target: is required: the column that holds
data: {csv: a, target: y, features: a} => 1:37: data.features: must be a l
data: {csv: a, target: y, features: []} => 1:37: data.features: must not b
data: {csv: a, target: y, features: [a, b, a]} => 1:44: data.features[2]: `a` is listed twice
data: {csv: a, target: y, features: [a, y]}
    1:41: data.features[1]: `y` is the target, and cannot be a feature
data: {csv: a, target: y, positive: true}
    1:37: data.positive: must be a string, got true; quote it as in the file: 'True'
data: {npz: no.npz} => 1:13: data.npz: no.npz: no such file
data: {npz: a.npz, X: 5} => 1:23: data.X: must be a string, got 5
""") | {
    'data: {csv: "a\\0", target: y}': "1:13: data.csv: must be a file's name",
    'data: {csv: "\\ud800", target: y}': "1:13: data.csv: must be Unicode text",
    f"data: {{csv: {'a' * 5000}, target: y}}": "1:13: data.csv: aaa",
}

FILES = {
    "empty": (b"", ": a spec must be a mapping of data, model, lr and more; this file is empty"),
    "comment-only": (
        b"# nothing\n",
        ": a spec must be a mapping of data, model, lr and more; this file is",
    ),
    "word-only": (
        b"hello",
        ":1:1: a spec must be a mapping of data, model, lr and more; this file holds",
    ),
    "list-only": (
        b"- a\n",
        ":1:1: a spec must be a mapping of data, model, lr and more; this file holds ['a",
    ),
    "latin-1": (GOOD.encode() + "é: 1".encode("latin-1"), ":6:1: not UTF-8 text (byte 0xe9); save"),
    "utf-16": (GOOD.encode("utf-16"), ":1:1: not UTF-8 text (byte 0xff); save the file as UTF-8"),
    "bytes": (bytes(range(128, 256)), ":1:1: not UTF-8 text (byte 0x80); save the file as UTF-8"),
    "byte-order-mark": (b"\xef\xbb\xbf" + GOOD.replace("0.1", "a").encode(), ":5:5: lr: must be a"),
    "crlf": (GOOD.replace("0.1", "a").replace("\n", "\r\n").encode(), ":5:5: lr: must be a number"),
    "newer-yaml": (b"%YAML 3.0\n---\n" + GOOD.encode(), ":1:1: not valid YAML: found incompatible"),
}


@pytest.mark.parametrize(("line", "expected"), VALUES.items(), ids=short)
def test_run_bad_value(line: str, expected: str, refused: Refused) -> None:
    message = refused.message(spec_yaml=replaced(line).encode())
    assert f"spec.yaml:{expected}" in message


@pytest.mark.parametrize("case", FILES)
def test_run_bad_spec_file(case: str, refused: Refused) -> None:
    content, expected = FILES[case]
    assert refused.message(spec_yaml=content).startswith(f"spec.yaml{expected}")


RPROP = {
    "weight_decay: 0.1\noptimizer: rprop": "6:15: weight_decay",
    "weight_decay: {weight: 0, bias: 1}\noptimizer: {name: Rprop}": "6:15: weight_decay",
    "optimizer: rprop\nframework: {weight_decay: 0.1}": "7:12: framework",
    "weight_decay: 0.1\nframework: {optimizer: rprop}": "7:12: framework",
}


@pytest.mark.parametrize("lines", RPROP, ids=short)
def test_run_weight_decay_where_torch_takes_none(lines: str, refused: Refused) -> None:
    message = refused.message(spec_yaml=f"{GOOD}{lines}\n".encode())
    text = "torch.optim.Rprop takes no weight decay; leave it out, or set it to 0"
    assert message.startswith(f"spec.yaml:{RPROP[lines]}: {text}")


def test_run_data_beyond_float32(refused: Refused) -> None:
    spec = replaced("data: {X: [[1e39], [2]], y: [0, 1]}") + "dtype: float32\n"
    assert refused.message(spec_yaml=spec.encode()).startswith("spec.yaml:4:8: dtype: float32 can")


def test_run_several_mistakes_all_told_in_order(refused: Refused) -> None:
    spec = "lrr: 1\ndata: {X: [[a]], y: [b]}\nmodle: 3\nepochs: 0\nepochs: 1\nlr: null\n"
    places = [line.split(" ")[0] for line in refused.message(spec_yaml=spec.encode()).splitlines()]
    assert places == [
        "spec.yaml:1:1:",  # model is required
        "spec.yaml:1:1:",  # lrr is unknown
        "spec.yaml:2:13:",
        "spec.yaml:2:22:",
        "spec.yaml:3:1:",
        "spec.yaml:4:9:",
        "spec.yaml:5:1:",  # epochs is given twice
        "spec.yaml:6:5:",
    ]


def test_run_unreadable_spec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    spec = tmp_path / "spec.yaml"
    spec.write_text(GOOD)
    monkeypatch.setattr(Path, "read_bytes", deny)
    assert exit_code(["run", str(spec)]) == 2
    assert capsys.readouterr().err == f"{spec}: cannot be read: Permission denied\n"
