"""Bad specs and data files: each is refused with one clear message, and nothing else happens."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regcheck.cli import exit_code
from regcheck.errors import InputError
from regcheck.spec import from_mapping

GOOD = """\
data:
  X: [[1.0, 2.0], [3.0, 4.0], [5.0, 6.5]]
  y: [0, 1, 1]
model: logistic
lr: 0.1
"""
CSV_DATA = "data: {csv: rows.csv, target: y}\nmodel: logistic\nlr: 0.1\n"
NPZ_DATA = "data: {npz: rows.npz}\nmodel: logistic\nlr: 0.1\n"
GOOD_CSV = "a,b,y\n1,2,0\n3,4,1\n5,6,1\n"
X, Y = np.arange(6.0).reshape(3, 2), np.array([0.0, 1.0, 1.0])

# --- a line added to a good spec, and the message's end -----------------------------------------

LINES = {
    "epochs-zero": ("epochs: 0", "6:9: epochs: must be a whole number ≥ 1, got 0"),
    "epochs-negative": ("epochs: -1", "6:9: epochs: must be a whole number ≥ 1, got -1"),
    "epochs-half": ("epochs: 1.5", "6:9: epochs: must be a whole number, got 1.5"),
    "epochs-word": ("epochs: many", "6:9: epochs: must be a whole number, got 'many'"),
    "epochs-bool": ("epochs: true", "6:9: epochs: must be a whole number, got true"),
    "epochs-null": ("epochs: null", "6:9: epochs: has no value"),
    "epochs-infinite": ("epochs: .inf", "6:9: epochs: must be a whole number, got inf"),
    "epochs-huge": (f"epochs: {10**400}", "6:9: epochs: must be a whole number ≤ 1,000,000,000,"),
    "epochs-5000-digits": (
        "epochs: " + "9" * 5000,
        "6:9: epochs: must be a finite number, got 5,000 digits",
    ),
    "batch-size-zero": ("batch_size: 0", "6:13: batch_size: must be `full` or a whole number ≥ 1"),
    "batch-size-negative": ("batch_size: -3", "6:13: batch_size: must be `full` or a whole"),
    "batch-size-half": ("batch_size: 2.5", "6:13: batch_size: must be `full` or a whole"),
    "batch-size-word": ("batch_size: half", "6:13: batch_size: must be `full` or a whole"),
    "batch-size-bool": ("batch_size: true", "6:13: batch_size: must be `full` or a whole"),
    "batch-size-list": ("batch_size: [2]", "6:13: batch_size: must be `full` or a whole"),
    "weight-decay-letter-o": (
        "weight_decay: 'O.1'",
        "6:15: weight_decay: must be a number ≥ 0, got 'O.1'",
    ),
    "weight-decay-negative": ("weight_decay: -0.1", "6:15: weight_decay: must be a number ≥ 0"),
    "weight-decay-nan": ("weight_decay: .nan", "6:15: weight_decay: must be a number ≥ 0, got nan"),
    "weight-decay-bool": ("weight_decay: true", "6:15: weight_decay: must be a number ≥ 0, or {"),
    "weight-decay-list": ("weight_decay: [0.1]", "6:15: weight_decay: must be a number ≥ 0, or {"),
    "weight-decay-huge": (f"weight_decay: {10**400}", "6:15: weight_decay: must be a finite"),
    "weight-decay-no-bias": (
        "weight_decay: {weight: 0.1}",
        "6:1: weight_decay.bias: is required: 0 leaves the bias without a penalty",
    ),
    "weight-decay-typo": (
        "weight_decay: {wieght: 1, weight: 1, bias: 1}",
        "6:16: weight_decay.wieght: unknown key; did you mean `weight`?",
    ),
    "weight-decay-word-inside": (
        "weight_decay: {weight: a, bias: 0}",
        "6:24: weight_decay.weight: must be a number, got 'a'",
    ),
    "optimizer-later": ("optimizer: adam", "6:12: optimizer: the optimizer adam is planned"),
    "optimizer-later-mapping": (
        "optimizer: {name: adamw, betas: [0.9, 0.999]}",
        "6:12: optimizer: the optimizer adamw is planned, and not in this version of regcheck",
    ),
    "optimizer-typo": ("optimizer: sdg", "6:12: optimizer: no optimizer is called 'sdg'; did you"),
    "optimizer-list": ("optimizer: [sgd]", "6:12: optimizer: must be sgd, or {name: sgd, mom"),
    "optimizer-number": ("optimizer: 5", "6:12: optimizer: must be sgd, or {name: sgd, momentum"),
    "optimizer-nameless": ("optimizer: {momentum: 0.9}", "6:1: optimizer.name: is required"),
    "momentum-negative": (
        "optimizer: {name: sgd, momentum: -1}",
        "6:34: optimizer.momentum: must be a number ≥ 0, got -1",
    ),
    "momentum-typo": (
        "optimizer: {name: sgd, momentm: 0.9}",
        "6:24: optimizer.momentm: unknown key; did you mean `momentum`?",
    ),
    "nesterov-without-momentum": (
        "optimizer: {name: sgd, nesterov: true}",
        "6:34: optimizer.nesterov: needs a momentum above 0 and no dampening",
    ),
    "nesterov-dampened": (
        "optimizer: {name: sgd, momentum: 0.9, nesterov: true, dampening: 0.1}",
        "6:49: optimizer.nesterov: needs a momentum above 0 and no dampening",
    ),
    "nesterov-yes": (
        "optimizer: {name: sgd, nesterov: yes}",
        "6:34: optimizer.nesterov: must be true or false, got 'yes'",
    ),
    "init-unknown": ("init: ones", "6:7: init: must be one of zeros, {constant: C}, {normal"),
    "init-number": ("init: 5", "6:7: init: must be one of zeros, {constant: C}, {normal: {std"),
    "init-two-ways": ("init: {constant: 1, normal: {std: 1}}", "6:7: init: must be one of zeros"),
    "init-empty": ("init: {}", "6:7: init: must be one of zeros"),
    "init-word": ("init: {constant: a}", "6:18: init.constant: must be a number, got 'a'"),
    "init-infinite": ("init: {constant: .inf}", "6:18: init.constant: must be a finite number"),
    "init-negative-std": ("init: {normal: {std: -1}}", "6:22: init.normal.std: must be a number ≥"),
    "init-no-std": ("init: {normal: {}}", "6:8: init.normal.std: is required"),
    "init-null-inside": ("init: {normal: null}", "6:16: init.normal: has no value"),
    "init-negative-seed": (
        "init: {normal: {std: 1, seed: -1}}",
        "6:31: init.normal.seed: must be a whole number ≥ 0, got -1",
    ),
    "init-no-bias": ("init: {weight: [1, 2]}", "6:7: init: must give both weight and bias; bias"),
    "init-too-many-weights": (
        "init: {weight: [1, 2, 3], bias: [0]}",
        "6:16: init.weight: must have 2 numbers, one for each feature, got 3",
    ),
    "init-two-biases": ("init: {weight: [1, 2], bias: [0, 1]}", "6:30: init.bias: must hold at mo"),
    "init-word-in-list": ("init: {weight: [1, a], bias: 0}", "6:20: init.weight[1]: must be a num"),
    "init-typo": ("init: {constnt: 1}", "6:8: init.constnt: unknown key; did you mean `constant`?"),
    "loss-unknown": ("loss: mae", "6:7: loss: must be one of mse, bce, bce_with_logits, got 'mae'"),
    "loss-later": ("loss: cross_entropy", "6:7: loss: the loss cross_entropy is planned"),
    "loss-list": ("loss: [bce]", "6:7: loss: must be one of mse, bce, bce_with_logits, got ['bce"),
    "loss-null": ("loss: null", "6:7: loss: has no value"),
    "shuffle-true": ("shuffle: true", "6:10: shuffle: must name its seed: {seed: 0}"),
    "shuffle-number": ("shuffle: 5", "6:10: shuffle: must be false or {seed: 0}, got 5"),
    "shuffle-no-seed": ("shuffle: {}", "6:1: shuffle.seed: is required"),
    "shuffle-negative-seed": ("shuffle: {seed: -1}", "6:17: shuffle.seed: must be a whole number"),
    "shuffle-half-seed": ("shuffle: {seed: 1.5}", "6:17: shuffle.seed: must be a whole number, g"),
    "shuffle-huge-seed": (
        f"shuffle: {{seed: {2**64}}}",
        "6:17: shuffle.seed: must be a whole numb",
    ),
    "drop-last-yes": ("drop_last: yes", "6:12: drop_last: must be true or false, got 'yes'"),
    "drop-last-number": ("drop_last: 1", "6:12: drop_last: must be true or false, got 1"),
    "accumulate-zero": ("accumulate: 0", "6:13: accumulate: must be a whole number ≥ 1, got 0"),
    "lr-schedule-word": ("lr_schedule: step", "6:14: lr_schedule: must be none or a mapping like"),
    "lr-schedule-no-kind": ("lr_schedule: {every: 5}", "6:1: lr_schedule.kind: is required"),
    "lr-schedule-incomplete": (
        "lr_schedule: {kind: step}",
        "6:14: lr_schedule: the kind step needs every and factor",
    ),
    "lr-schedule-foreign-key": (
        "lr_schedule: {kind: cosine, steps: 5, factor: 1}",
        "6:47: lr_schedule.factor: the kind cosine has no such key; it takes steps, floor, per",
    ),
    "lr-schedule-unknown-kind": (
        "lr_schedule: {kind: cosin, steps: 5}",
        "6:21: lr_schedule.kind: must be one of step, exponential, cosine, warmup, list, got",
    ),
    "lr-schedule-empty-list": (
        "lr_schedule: {kind: list, values: []}",
        "6:35: lr_schedule.values: must not be empty, got []",
    ),
    "clip-norm-zero": ("clip_norm: 0", "6:12: clip_norm: must be a number > 0, got 0"),
    "clip-norm-bool": ("clip_norm: true", "6:12: clip_norm: must be a number, got true"),
    "clip-norm-null": ("clip_norm:", "6:11: clip_norm: has no value"),
    "clip-twice": ("clip_norm: 1\nclip_value: 1", "7:13: clip_value: clip_norm and clip_value ex"),
    "dtype-half": ("dtype: float16", "6:8: dtype: must be float64, float32 or {scratch: float64"),
    "dtype-number": ("dtype: 64", "6:8: dtype: must be float64, float32 or {scratch: float64"),
    "dtype-one-side": ("dtype: {scratch: float64}", "6:1: dtype.framework: is required"),
    "dtype-half-inside": (
        "dtype: {scratch: float64, framework: half}",
        "6:38: dtype.framework: must be one of float32, float64, got 'half'",
    ),
    "float32-weight-decay": (
        "dtype: float32\nweight_decay: 1e300",
        "7:15: weight_decay.weight: float32 holds numbers up to 3.4e38, got 1e+300; use float64",
    ),
    "float32-init": (
        "dtype: {scratch: float64, framework: float32}\ninit: {weight: [1, 1e39], bias: 0}",
        "7:20: init.weight[1]: float32 holds numbers up to 3.4e38, got 1e+39",
    ),
    "convention-unknown": (
        "convention: torch",
        "6:13: convention: no convention is called 'torch'; did you mean `pytorch`?",
    ),
    "convention-list": ("convention: [pytorch]", "6:13: convention: must be a convention's name"),
    "convention-typo": (
        "convention: {dcay: gradient}",
        "6:14: convention.dcay: unknown key; did you mean `decay`?",
    ),
    "convention-value": (
        "convention: {decay: coupled}",
        "6:21: convention.decay: must be one of gradient, after-momentum, decoupled,",
    ),
    "convention-yes": (
        "convention: {penalize_bias: yes}",
        "6:29: convention.penalize_bias: must be true or false, got 'yes'",
    ),
    "compare-nothing": ("compare: []", "6:10: compare: must not be empty, got []"),
    "compare-unknown": ("compare: [weights]", "6:11: compare[0]: must be one of parameters, loss,"),
    "compare-word": ("compare: loss", "6:10: compare: must be a list, got 'loss'"),
    "compare-twice": ("compare: [loss, loss]", "6:10: compare: must name each of parameters and"),
    "tolerance-word": ("tolerance: exactly", "6:12: tolerance: must be {rounding: 8}, {rtol"),
    "tolerance-number": ("tolerance: 8", "6:12: tolerance: must be {rounding: 8}, {rtol"),
    "tolerance-empty": ("tolerance: {}", "6:12: tolerance: must be {rounding: 8}, {rtol"),
    "tolerance-two-kinds": (
        "tolerance: {rounding: 8, atol: 1}",
        "6:12: tolerance: takes either rounding, on one step, or rtol and atol, on the drift",
    ),
    "tolerance-exact-key": ("tolerance: {exact: true}", "6:12: tolerance: must be {rounding: 8}"),
    "tolerance-negative": ("tolerance: {rtol: -1}", "6:19: tolerance.rtol: must be a number ≥ 0"),
    "tolerance-near-key": (
        "tolerance: {rtoll: 1}",
        "6:13: tolerance.rtoll: unknown key; did you mean `rtol`?",
    ),
    "tolerance-near-tensor": (
        "tolerance: {weigth: exact}",
        "6:13: tolerance.weigth: unknown key; did you mean `weight`?",
    ),
    "tolerance-tensor-word": (
        "tolerance: {weight: close}",
        "6:21: tolerance.weight: must be {rounding: 8}, {rtol: 1e-5, atol: 1e-8} or exact",
    ),
    "tolerance-tensor-two-kinds": (
        "tolerance: {bias: {rounding: 1, rtol: 1}}",
        "6:19: tolerance.bias: takes either rounding, on one step, or rtol and atol",
    ),
    "tolerance-zero": (
        "tolerance: {rounding: 0}",
        "6:23: tolerance.rounding: must be a number > 0",
    ),
    "scratch-number": (
        "scratch: 3",
        "6:10: scratch: must be a Python file and a function in it, like my_train.py:train; got 3",
    ),
    "scratch-no-function": (
        "scratch: my.py",
        "6:10: scratch: must be a Python file and a function",
    ),
    "scratch-no-file": ("scratch: train", "6:10: scratch: must be a Python file and a function"),
    "scratch-odd-function": ("scratch: my.py:3f", "6:10: scratch: must be a Python file and"),
    "scratch-two-functions": ("scratch: my.py:f:g", "6:10: scratch: must be a Python file and"),
    "scratch-settings": ("scratch: {lr: 0.2}", "6:10: scratch: must be a Python file and a"),
    "scratch-null": ("scratch:", "6:9: scratch: has no value; give it one, or leave an optional"),
    "framework-word": (
        "framework: torch",
        "a function in it, like my_train.py:train, or a mapping like {lr: 0.2} of what torch alone",
    ),
    "framework-list": ("framework: [my.py:f]", "6:12: framework: must be a Python file and a"),
    "framework-null": ("framework:", "6:11: framework: has no value; give it one, or leave an"),
    "framework-empty": (
        "framework: {}",
        "6:12: framework: must hold lr, weight_decay or optimizer",
    ),
    "framework-unknown-key": ("framework: {lrr: 1}", "6:13: framework.lrr: unknown key; did you m"),
    "framework-momentum": (
        "framework: {momentum: 0.9}",
        "6:13: framework.momentum: unknown key; known here: lr, weight_decay, optimizer",
    ),
    "framework-lr": ("framework: {lr: -1}", "6:17: framework.lr: must be a number ≥ 0, got -1"),
    "framework-lr-null": ("framework: {lr: null}", "6:17: framework.lr: has no value; give it one"),
    "framework-lr-twice": (
        "framework: {lr: 1, lr: 2}",
        "6:20: framework.lr: is given twice, first in line 6; keep one of them",
    ),
    "framework-decay-word": (
        "framework: {weight_decay: {weight: a, bias: 0}}",
        "6:36: framework.weight_decay.weight: must be a number, got 'a'",
    ),
    "framework-decay-bias": (
        "framework: {weight_decay: {weight: 1}}",
        "6:13: framework.weight_decay.bias: is required: 0 leaves the bias without a penalty",
    ),
    "framework-optimizer": (
        "framework: {optimizer: adam}",
        "6:24: framework.optimizer: the optimizer adam is planned",
    ),
    "framework-optimizer-key": (
        "framework: {optimizer: {name: sgd, momentm: 1}}",
        "6:36: framework.optimizer.momentm: unknown key; did you mean `momentum`?",
    ),
    "expect-word": ("expect: diverged", "6:9: expect: must be {verdict: diverged, step: 2"),
    "expect-empty": ("expect: {}", "6:9: expect: must hold verdict, step or cause"),
    "expect-verdict": (
        "expect: {verdict: diverge}",
        "6:19: expect.verdict: must be one of equivalent, diverged, inconclusive, got 'diverge'",
    ),
    "expect-step": ("expect: {step: 0}", "6:16: expect.step: must be a whole number ≥ 1, got 0"),
    "expect-cause": (
        "expect: {cause: penalty-double}",
        "6:17: expect.cause: no cause is called 'penalty-double'; did you mean `penalty-doubled`?",
    ),
    "expect-cause-later": (
        "expect: {cause: penalty-scaled}",
        "6:17: expect.cause: recognising the cause penalty-scaled is planned",
    ),
    "expect-step-of-nothing": (
        "expect: {verdict: equivalent, step: 2}",
        "6:9: expect: an equivalent run has no step and no cause; expect the verdict alone",
    ),
    "expect-cause-of-nothing": (
        "expect: {verdict: inconclusive, cause: penalty-doubled}",
        "6:9: expect: an inconclusive run has no cause",
    ),
    "unknown-key-near": (
        "weigth_decay: 0.1",
        "6:1: weigth_decay: unknown key; did you mean `weight_decay`?",
    ),
    "unknown-key-upper-case": ("EPOCHS: 1", "6:1: EPOCHS: unknown key; did you mean `epochs`?"),
    "unknown-key-synonym": (
        "learning_rate: 1",
        "6:1: learning_rate: unknown key; did you mean `lr`",
    ),
    "unknown-key-far": ("zzz: 1", "6:1: zzz: unknown key; known here: data, model, loss, bias"),
    "unknown-key-number": ("3: 1", "6:1: 3: unknown key; known here: data, model"),
    "unknown-key-escapes": (
        '"\\e[31m\\n": 1',
        "6:1: '\\x1b[31m\\n': unknown key; known here: data",
    ),
    "duplicate-key": ("lr: 0.2", "6:1: lr: is given twice, first in line 5; keep one of them"),
    "key-is-a-list": ("? [a, b]\n: 1", "6:3: a key must be a word"),
    "anchor": ("epochs: &a 1", "6:9: anchors and aliases have no use in a spec"),
    "alias": ("epochs: *a", "6:9: anchors and aliases have no use in a spec"),
    "tag": ("epochs: !!python/object:os.system x", "6:9: tags have no use in a spec; remove it"),
    "tag-float": ("epochs: !!float abc", "6:9: tags have no use in a spec; remove it"),
    "merge-key": ("<<: {lr: 1}", "6:1: '<<': unknown key"),
    "two-documents": (
        "---\nlr: 1",
        "6:1: not valid YAML: expected a single document in the stream",
    ),
    "tab": (
        "init:\n\tconstant: 1",
        "7:1: not valid YAML: while scanning for the next token, found",
    ),
    "no-space-after-colon": ("epochs:5", "7:1: not valid YAML: while scanning a simple key, could"),
    "colon-in-value": ("epochs: 5: 6", "6:10: not valid YAML: mapping values are not allowed here"),
    "unclosed-list": ("compare: [loss", "7:1: not valid YAML: while parsing a flow sequence"),
    "unclosed-quote": ('loss: "bce', "7:1: not valid YAML: while scanning a quoted scalar"),
    "deep-nesting": ("x: " + "[" * 5000 + "]" * 5000, "6:35: nested too deeply for a spec"),
    "deep-nesting-unclosed": ("x: " + "{a: " * 5000, "nested too deeply for a spec"),
    "control-character": ("x: \x07", "6:4: not valid YAML: the character U+0007 is not allowed"),
    "nul-character": ("\0", "6:1: not valid YAML: the character U+0000 is not allowed"),
    "long-word": ("loss: " + "x" * 10**6, "6:7: loss: must be one of mse, bce, bce_with_logits, g"),
    "long-key": ("x" * 1000 + ": 1", "6:1: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...: unknown key"),
}

# --- another value of lr, model or data ---------------------------------------------------------

VALUES = {
    "lr-word": ("lr: O.1", "5:5: lr: must be a number, got 'O.1'"),
    "lr-quoted": ('lr: "0.1"', "5:5: lr: must be a number, got '0.1'"),
    "lr-underscore": ("lr: 1_000", "5:5: lr: must be a number, got '1_000'"),
    "lr-hexadecimal": ("lr: 0x10", "5:5: lr: must be a number, got '0x10'"),
    "lr-sexagesimal": ("lr: 1:30", "5:5: lr: must be a number, got '1:30'"),
    "lr-overflow": ("lr: 1e400", "5:5: lr: must be a finite number, got inf"),
    "lr-nan": ("lr: .nan", "5:5: lr: must be a number ≥ 0, got nan"),
    "lr-negative": ("lr: -1", "5:5: lr: must be a number ≥ 0, got -1"),
    "lr-bool": ("lr: true", "5:5: lr: must be a number, got true"),
    "lr-empty": ("lr:", "5:4: lr: has no value"),
    "lr-mapping": ("lr: {a: 1}", "5:5: lr: must be a number, got {a: 1}"),
    "lr-missing": ("epochs: 1", "1:1: lr: is required: the learning rate"),
    "model-later": ("model: softmax", "4:8: model: the model softmax is planned, and not in this"),
    "model-later-mapping": ("model: {mlp: {hidden: [16]}}", "4:8: model: the model mlp is planned"),
    "model-mapping": (
        "model: {logistic: {}}",
        "4:8: model: must be one of linear, logistic, got {",
    ),
    "model-unknown": ("model: svm", "4:8: model: must be one of linear, logistic, got 'svm'"),
    "model-upper-case": (
        "model: Logistic",
        "4:8: model: must be one of linear, logistic, got 'Logistic'; did you mean `logistic`?",
    ),
    "model-list": ("model: [logistic]", "4:8: model: must be one of linear, logistic, got ['logis"),
    "model-does-not-fit": (
        "model: linear\nloss: bce",
        "5:7: loss: bce does not go with the model linear; it takes mse; for labels 0 and 1, say",
    ),
    "data-null": ("data: null", "1:7: data: has no value"),
    "data-list": ("data: [1]", "1:7: data: must be a mapping with one source: csv, npz, synthetic"),
    "data-word": ("data: rows.csv", "1:7: data: must be a mapping with one source"),
    "data-empty": ("data: {}", "1:7: data: must have one source: csv, npz, synthetic, or X and y"),
    "data-typo": ("data: {cvs: a.csv, target: y}", "1:7: data: must have one source: csv, npz, s"),
    "data-two-sources": (
        "data: {csv: a.csv, target: y, npz: b.npz}",
        "1:7: data: must have exactly one source, got csv and npz",
    ),
    "data-csv-and-inline": (
        "data: {csv: a.csv, target: y, X: [[1]]}",
        "1:7: data: must have exactly one source, got csv and inline X, y",
    ),
    "data-no-y": ("data: {X: [[1.0]]}", "1:1: data.y: is required: with one number for each row"),
    "data-no-x": ("data: {y: [1.0]}", "1:1: data.X: is required: with one list for each row"),
    "x-flat": ("data: {X: [1, 2], y: [1, 0]}", "1:11: data.X: must be a list of rows, like [[2.0]"),
    "x-empty": ("data: {X: [], y: [1]}", "1:11: data.X: must not be empty, got []"),
    "x-empty-row": ("data: {X: [[]], y: [1]}", "1:12: data.X[0]: must not be empty, got []"),
    "x-ragged": (
        "data: {X: [[1, 2], [1]], y: [1, 0]}",
        "1:20: data.X[1]: must have 2 numbers as the first row has, got 1",
    ),
    "x-word-deep-inside": (
        "data:\n  X:\n    - [1, 2]\n    - [3, 4]\n    - [5, 6]\n    - [7, a]\n  y: [1, 1, 1, 1]",
        "6:11: data.X[3][1]: must be a number, got 'a'",
    ),
    "x-infinite": ("data: {X: [[1], [.inf]], y: [0, 1]}", "1:18: data.X[1][0]: must be a finite"),
    "y-of-other-length": (
        "data: {X: [[1], [2]], y: [0]}",
        "1:26: data.y: must have one number for each row of X: X has 2 rows, y 1",
    ),
    "y-nested": ("data: {X: [[1]], y: [[1]]}", "1:22: data.y[0]: must be a number, got [1]"),
    "y-null-inside": ("data: {X: [[1]], y: [null]}", "1:22: data.y[0]: has no value"),
    "y-minus-one": (
        "data: {X: [[1], [2]], y: [-1, 1]}",
        "1:26: data.y: the model logistic needs targets from 0 to 1, got -1 in row 1; turn -1 and",
    ),
    "y-two": ("data: {X: [[1], [2]], y: [0, 2]}", "1:26: data.y: the model logistic needs targets"),
    "standardize-typo": (
        "data: {X: [[1]], y: [0], standardise: true}",
        "1:26: data.standardise: unknown key; did you mean `standardize`?",
    ),
    "standardize-yes": (
        "data: {X: [[1]], y: [0], standardize: yes}",
        "1:39: data.standardize: mus",
    ),
    "standardize-ddof": (
        "data: {X: [[1]], y: [0], standardize: {ddof: 2}}",
        "1:46: data.standardize.ddof: must be a whole number ≤ 1, got 2",
    ),
    "standardize-one-row": (
        "data: {X: [[1]], y: [0], standardize: {ddof: 1}}",
        "1:39: data.standardize: ddof 1 needs at least 2 training rows, got 1",
    ),
    "standardize-overflow": (
        "data: {X: [[1e308], [-1e308]], y: [0, 1], standardize: true}",
        "1:56: data.standardize: overflows",
    ),
    "test-zero": ("data: {X: [[1]], y: [0], test: 0}", "1:32: data.test: must be a share above 0"),
    "test-one": ("data: {X: [[1]], y: [0], test: 1}", "1:32: data.test: must be a share above 0"),
    "test-word": ("data: {X: [[1]], y: [0], test: half}", "1:32: data.test: must be a share above"),
    "test-no-share": ("data: {X: [[1]], y: [0], test: {seed: 1}}", "1:26: data.test.share: is req"),
    "test-leaves-none": (
        "data: {X: [[1], [2]], y: [0, 1], test: 0.9}",
        "1:40: data.test: holds out all 2 rows, and none is left to train on",
    ),
    "synthetic-no-rows": (
        "data: {synthetic: {rows: 0, features: 4}}",
        "1:26: data.synthetic.rows: must be a whole number ≥ 1, got 0",
    ),
    "synthetic-number": ("data: {synthetic: 5}", "1:19: data.synthetic: must be a mapping, got 5"),
    "synthetic-too-large": (
        "data: {synthetic: {rows: 1e9, features: 1e6}}",
        "1:19: data.synthetic: 1,000,000,000 × 1,000,000 numbers; at most 500,000,000 can be made",
    ),
    "csv-not-there": (
        "data: {csv: no.csv, target: y}",
        "1:13: data.csv: no.csv: no such file; paths are relative to the spec",
    ),
    "csv-folder": ("data: {csv: ., target: y}", "1:13: data.csv: "),
    "csv-number": ("data: {csv: 5, target: y}", "1:13: data.csv: must be a word, got 5"),
    "csv-empty-name": ('data: {csv: "", target: y}', "1:13: data.csv: must not be empty, got ''"),
    "csv-nul-in-name": ('data: {csv: "a\\0", target: y}', "1:13: data.csv: must be a file's name"),
    "csv-surrogate": ('data: {csv: "\\ud800", target: y}', "1:13: data.csv: must hold no half of"),
    "csv-long-name": (f"data: {{csv: {'a' * 5000}, target: y}}", "1:13: data.csv: aaa"),
    "csv-no-target": ("data: {csv: a.csv}", "1:1: data.target: is required: the column that holds"),
    "features-word": ("data: {csv: a, target: y, features: a}", "1:37: data.features: must be a l"),
    "features-none": ("data: {csv: a, target: y, features: []}", "1:37: data.features: must not b"),
    "features-repeat": (
        "data: {csv: a, target: y, features: [a, b, a]}",
        "1:44: data.features[2]: `a` is listed twice",
    ),
    "features-hold-target": (
        "data: {csv: a, target: y, features: [a, y]}",
        "1:41: data.features[1]: `y` is the target, and cannot be a feature",
    ),
    "positive-bool": (
        "data: {csv: a, target: y, positive: true}",
        "1:37: data.positive: must be a word, got true; quote it as the file has it: 'True'",
    ),
    "npz-not-there": ("data: {npz: no.npz}", "1:13: data.npz: no.npz: no such file"),
    "npz-folder": ("data: {npz: .}", "1:13: data.npz: "),
    "npz-number-as-name": ("data: {npz: a.npz, X: 5}", "1:23: data.X: must be a word, got 5"),
}

FILES = {
    "empty": (b"", ": a spec is a mapping with data, model, lr, ..; this file is empty"),
    "comment-only": (
        b"# nothing\n",
        ": a spec is a mapping with data, model, lr, ..; this file is",
    ),
    "word-only": (b"hello", ":1:1: a spec is a mapping with data, model, lr, ..; this file holds"),
    "list-only": (
        b"- a\n",
        ":1:1: a spec is a mapping with data, model, lr, ..; this file holds ['a",
    ),
    "latin-1": (GOOD.encode() + "é: 1".encode("latin-1"), ":6:1: not UTF-8 text (byte 0xe9); save"),
    "utf-16": (GOOD.encode("utf-16"), ":1:1: not UTF-8 text (byte 0xff); save the file as UTF-8"),
    "bytes": (bytes(range(128, 256)), ":1:1: not UTF-8 text (byte 0x80); save the file as UTF-8"),
    "byte-order-mark": (b"\xef\xbb\xbf" + GOOD.replace("0.1", "a").encode(), ":5:5: lr: must be a"),
    "crlf": (GOOD.replace("0.1", "a").replace("\n", "\r\n").encode(), ":5:5: lr: must be a number"),
    "newer-yaml": (b"%YAML 3.0\n---\n" + GOOD.encode(), ":1:1: not valid YAML: found incompatible"),
}

CSV_FILES = {
    "empty": ("", "rows.csv: empty; a header and at least one row are needed"),
    "blank": ("\n\n", "rows.csv: empty; a header and at least one row are needed"),
    "header-only": ("a,b,y\n", "rows.csv: has a header but no rows"),
    "short-row": (GOOD_CSV + "1,2\n", "rows.csv:5: row 4 has 2 cells, the header 3"),
    "long-row": (GOOD_CSV + "1,2,3,4\n", "rows.csv:5: row 4 has 4 cells, the header 3"),
    "repeated-column": ("a,a,y\n1,2,0\n", "rows.csv:1: the column `a` is there twice"),
    "unnamed-column": (",b,y\n1,2,0\n", "rows.csv:1: column 1 has no name; name it, or list the"),
    "semicolons": (GOOD_CSV.replace(",", ";"), "rows.csv:1: the header has one column only; separ"),
    "tabs": (GOOD_CSV.replace(",", "\t"), "rows.csv:1: the header has one column only; separate"),
    "decimal-comma": (
        'a,b,y\n"1,5",2,0\n3,4,1\n',
        "rows.csv:2: row 1, column `a`: must be a finite number, got '1,5'; write a decimal point",
    ),
    "unclosed-quote": ('a,b,y\n1,"2,0\n', "rows.csv:2: not valid CSV: unexpected end of data"),
    "text-after-quote": ('a,b,y\n1,"2"x,0\n', "rows.csv:2: not valid CSV: ',' expected after"),
    "field-too-large": (f"a,b,y\n{'9' * 200_000},2,0\n", "rows.csv:2: not valid CSV: field larger"),
    "missing-na": ("a,b,y\n1,2,0\n1,NA,0\n", "rows.csv:3: row 2, column `b`: missing value ('NA')"),
    "missing-empty": ("a,b,y\n,2,0\n1,2,0\n", "rows.csv:2: row 1, column `a`: missing value ('')"),
    "missing-column": ("a,b,y\n,2,0\n,2,0\n", "rows.csv:2: row 1, column `a`: missing value ('')"),
    "missing-target": ("a,b,y\n1,2,\n3,4,\n", "rows.csv:2: row 1, column `y`: missing value ('')"),
    "missing-many": ("a,b,y\n" + ",2,1\n" * 30, "rows.csv: and 20 more like these"),
    "infinite-cell": ("a,b,y\n1,inf,0\n", "rows.csv:2: row 1, column `b`: must be a finite number"),
    "overflowing-cell": ("a,b,y\n1e400,2,0\n", "rows.csv:2: row 1, column `a`: must be a finite"),
    "underscored-cell": ("a,b,y\n1_000,2,0\n", "rows.csv:2: row 1, column `a`: must be a finite"),
    "nul-cell": ("a,b,y\n1,\0,0\n1,2,0\n", "rows.csv:2: row 1, column `b`: must be a finite numbe"),
    "escape-cell": ("a,b,y\n1,\x1b,0\n1,2,0\n", "rows.csv:2: row 1, column `b`: must be a finite"),
    "quoted-line-break": (
        'a,b,y\n1,2,0\n3,"x\ny",1\n',
        "rows.csv:4: row 2, column `b`: must be a finite number, got 'x\\ny'",
    ),
    "no-numeric-column": ("a,b,y\nx,u,0\nz,v,1\n", "rows.csv:1: no column but the target is nume"),
    "text-labels": (
        "a,b,y\n1,2,cat\n3,4,dog\n",
        "spec.yaml:1:31: data.target: holds labels (cat, dog); say which one is 1 with `positive:",
    ),
    "mixed-labels": ("a,b,y\n1,2,0\n3,4,no\n", "rows.csv:3: row 2, column `y`: must be a finite"),
    "labels-minus-one": ("a,b,y\n1,2,-1\n3,4,1\n", "spec.yaml:1:31: data.target: the model logist"),
    "labels-one-two": ("a,b,y\n1,2,1\n3,4,2\n", "spec.yaml:1:31: data.target: the model logistic"),
    "no-target-column": (
        "a,b,yy\n1,2,0\n",
        "spec.yaml:1:31: data.target: no column `y` in rows.csv; did you mean `yy`?",
    ),
    "no-header": (
        "1,2,0\n3,4,1\n",
        "spec.yaml:1:31: data.target: no column `y` in rows.csv; known",
    ),
}

CSV_SPECS = {
    "feature-not-there": (
        "{csv: rows.csv, target: y, features: [a, bb]}",
        "spec.yaml:1:48: data.features[1]: no column `bb` in rows.csv; did you mean `b`?",
    ),
    "feature-of-text": (
        "{csv: rows.csv, target: y, features: [a, word]}",
        "rows.csv:2: row 1, column `word`: must be a finite number, got 'u'; fix it, or leave",
    ),
    "positive-not-there": (
        "{csv: rows.csv, target: word, positive: w}",
        "spec.yaml:1:47: data.positive: no row of rows.csv has the label `w`; known here: u, v",
    ),
}


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def with_member(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", content)
        archive.writestr("y.npy", content)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption in each entry of an archive's directory."""
    changed = bytearray(content)
    place = changed.find(b"PK\x01\x02")
    while place >= 0:
        changed[place + 8] |= 1
        place = changed.find(b"PK\x01\x02", place + 4)
    return bytes(changed)


class Trap:
    """An object whose unpickling would be seen."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


BROKEN = "rows.npz: cannot be read as an .npz archive; write it with numpy.savez"
NPZ_FILES = {
    "empty": (b"", BROKEN),
    "text": (b"a,b\n1,2\n", BROKEN),
    "pickle": (pickle.dumps(Trap()), BROKEN),
    "objects": (npz(X=np.array([[Trap()]]), y=Y), "rows.npz: `X` holds Python objects, which are"),
    "objects-in-y": (npz(X=X, y=np.array([Trap()])), "rows.npz: `y` holds Python objects, which"),
    "truncated": (npz(X=X, y=Y)[:200], BROKEN),
    "bad-checksum": (npz(X=X, y=Y).replace(X[2].tobytes(), X[1].tobytes()), BROKEN),
    "encrypted": (encrypted(npz(X=X, y=Y)), BROKEN),
    "not-an-array": (with_member(b"hello"), BROKEN),
    "no-header": (with_member(b""), BROKEN),
    "header-of-code": (with_member(header("__import__('os')")), BROKEN),
    "header-without-type": (with_member(header("{'shape': (3, 2)}")), BROKEN),
    "header-of-other-shape": (
        with_member(header("{'descr': '<f8', 'fortran_order': False, 'shape': 3}")),
        BROKEN,
    ),
    "header-of-terabytes": (
        with_member(header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**13}, 9)}}")),
        BROKEN,
    ),
    "header-nested": (with_member(header("(" * 9000)), BROKEN),
    "no-x": (npz(x=X, y=Y), "rows.npz: no array `X`; did you mean `x`?"),
    "no-y": (npz(X=X, target=Y), "rows.npz: no array `y`; known here: X, target"),
    "three-axes": (npz(X=X[None], y=Y), "rows.npz: `X` must be (n, d) and `y` (n,), got (1, 3, 2)"),
    "other-length": (npz(X=X, y=Y[:2]), "rows.npz: `X` must be (n, d) and `y` (n,), got (3, 2) an"),
    "two-targets": (npz(X=X, y=X), "rows.npz: `X` must be (n, d) and `y` (n,), got (3, 2) and (3,"),
    "scalar": (npz(X=1.0, y=Y), "rows.npz: `X` must be (n, d) and `y` (n,), got () and (3,)"),
    "no-rows": (npz(X=X[:0], y=Y[:0]), "rows.npz: `X` holds no numbers: its shape is (0, 2)"),
    "no-columns": (npz(X=X[:, :0], y=Y), "rows.npz: `X` holds no numbers: its shape is (3, 0)"),
    "complex": (npz(X=X + 1j, y=Y), "rows.npz: `X` must hold real numbers, got NumPy's type <c16"),
    "strings": (npz(X=X.astype(str), y=Y), "rows.npz: `X` must hold real numbers, got NumPy's"),
    "dates": (npz(X=X.astype("M8[s]"), y=Y), "rows.npz: `X` must hold real numbers, got NumPy's"),
    "records": (npz(X=np.zeros(3, [("a", "f8")]), y=Y), "rows.npz: `X` must hold real numbers, go"),
    "nan": (
        npz(X=np.where(X == 5, np.nan, X), y=Y),
        "rows.npz: `X`, row 3, column 2: missing or infinite value (nan)",
    ),
    "nan-many": (npz(X=np.full((20, 2), np.nan), y=Y), "rows.npz: and 30 more like these"),
    "infinite-y": (
        npz(X=X, y=Y + np.inf),
        "rows.npz: `y`, row 1: missing or",
    ),
    "labels": (npz(X=X, y=2 * Y - 1), "spec.yaml:1:7: data.y: the model logistic needs targets"),
}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


class Refused:
    """Runs a spec that must be refused, and gives the message without the folder's name."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def message(self, **files: bytes) -> str:
        for name, content in files.items():
            (self.folder / name.replace("_", ".")).write_bytes(content)
        before = listing(self.folder)
        code = exit_code(["run", str(self.folder / "spec.yaml")])
        told = self.capsys.readouterr()
        lines = told.err.splitlines()
        assert code == 2, told.err
        assert told.out == ""
        assert "Traceback" not in told.err
        assert "internal error" not in told.err
        assert len(set(lines)) == len(lines), "a line is repeated"
        assert max(map(len, lines)) < 500
        assert listing(self.folder) == before
        return told.err.replace(f"{self.folder}/", "")


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def replaced(line: str) -> str:
    """Put a line in the place of the good spec's line of the same key, or of its last."""
    key = line.partition(":")[0]
    if key == "data":
        return line + GOOD[GOOD.index("\nmodel") :]
    old = next((one for one in GOOD.splitlines() if one.startswith(key)), "lr: 0.1")
    return GOOD.replace(old, line)


@pytest.mark.parametrize("case", LINES)
def test_run_bad_line(case: str, refused: Refused) -> None:
    line, expected = LINES[case]
    message = refused.message(spec_yaml=f"{GOOD}{line}\n".encode())
    assert message.startswith("spec.yaml:")
    assert expected in message


@pytest.mark.parametrize("key", ["scratch", "framework"])
def test_run_code_in_a_file_that_is_not_there(key: str, refused: Refused) -> None:
    message = refused.message(spec_yaml=f"{GOOD}{key}: my.py:train\n".encode())
    assert "spec.yaml: my.py:train: there is no file my.py\n" in message
    assert "relative to the spec" in message


@pytest.mark.parametrize("case", VALUES)
def test_run_bad_value(case: str, refused: Refused) -> None:
    line, expected = VALUES[case]
    message = refused.message(spec_yaml=replaced(line).encode())
    assert f"spec.yaml:{expected}" in message


@pytest.mark.parametrize("case", FILES)
def test_run_bad_spec_file(case: str, refused: Refused) -> None:
    content, expected = FILES[case]
    assert refused.message(spec_yaml=content).startswith(f"spec.yaml{expected}")


@pytest.mark.parametrize("case", CSV_FILES)
def test_run_bad_csv_file(case: str, refused: Refused) -> None:
    content, expected = CSV_FILES[case]
    assert expected in refused.message(spec_yaml=CSV_DATA.encode(), rows_csv=content.encode())


@pytest.mark.parametrize("case", CSV_SPECS)
def test_run_bad_spec_for_a_csv_file(case: str, refused: Refused) -> None:
    data, expected = CSV_SPECS[case]
    spec = f"data: {data}\nmodel: logistic\nlr: 0.1\n".encode()
    message = refused.message(spec_yaml=spec, rows_csv=b"a,b,word,y\n1,2,u,0\n3,4,v,1\n")
    assert message.startswith(expected)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_run_csv_in_another_encoding(encoding: str, refused: Refused) -> None:
    content = "a,é,y\n1,2,0\n3,4,1\n".encode(encoding)
    message = refused.message(spec_yaml=CSV_DATA.encode(), rows_csv=content)
    assert message.startswith("rows.csv:1:")
    assert "not UTF-8 text" in message


@pytest.mark.parametrize("case", NPZ_FILES)
def test_run_bad_npz_file(case: str, refused: Refused) -> None:
    content, expected = NPZ_FILES[case]
    assert expected in refused.message(spec_yaml=NPZ_DATA.encode(), rows_npz=content)


def test_run_positive_without_labels(refused: Refused) -> None:
    spec = CSV_DATA.replace("y}", "y, positive: 1}").replace("logistic", "linear")
    message = refused.message(spec_yaml=spec.encode(), rows_csv=GOOD_CSV.encode())
    assert message.startswith("spec.yaml:1:44: data.positive: only the model logistic has a")


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


# --- anything at all ----------------------------------------------------------------------------

QUICK = settings(
    deadline=None,
    derandomize=True,
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = st.sampled_from(
    [
        "data",
        "model",
        "loss",
        "init",
        "optimizer",
        "lr",
        "weight_decay",
        "epochs",
        "batch_size",
        "shuffle",
        "drop_last",
        "accumulate",
        "lr_schedule",
        "clip_norm",
        "clip_value",
        "dtype",
        "convention",
        "compare",
        "tolerance",
        "scratch",
        "expect",
        "csv",
        "npz",
        "X",
        "y",
        "synthetic",
        "rows",
        "features",
        "seed",
        "test",
        "share",
        "name",
        "momentum",
        "nesterov",
        "weight",
        "bias",
        "kind",
    ]
)
WORDS = st.sampled_from(
    [
        "none",
        "full",
        "zeros",
        "sgd",
        "adam",
        "step",
        "mse",
        "bce",
        "linear",
        "logistic",
        "float32",
        "exact",
        "pytorch",
        "loss",
    ]
)
VALUES_OF_ANY_KIND = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
GOOD_MAPPING: dict[str, Any] = {
    "data": {"X": [[1.0], [2.0]], "y": [0, 1]},
    "model": "logistic",
    "lr": 0.1,
}


@QUICK
@given(st.dictionaries(KEYS, VALUES_OF_ANY_KIND, max_size=5))
def test_from_mapping_of_anything_is_a_spec_or_refused(changes: dict[str, Any]) -> None:
    content = GOOD_MAPPING | changes
    try:
        loaded = from_mapping(content)
    except InputError as error:
        told = str(error).splitlines()
        assert told
        assert all(line.startswith("spec: ") for line in told)
    else:
        assert loaded.spec.lr >= 0


def code_of(text: str, folder: Path) -> int:
    spec = folder / "spec.yaml"
    spec.write_text(text, encoding="utf-8", newline="")
    return exit_code(["run", "--quiet", str(spec)])


@QUICK
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_run_any_text_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert code_of(text, tmp_path) == 2
    assert capsys.readouterr().err.startswith(str(tmp_path))


@QUICK
@given(
    place=st.integers(0, len(GOOD)),
    length=st.integers(0, 6),
    text=st.text("0159.-+eE:,[]{}#'\"&*!|>%@ \n\taxyX", max_size=4),
)
def test_run_any_change_of_a_good_spec_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, length: int, text: str
) -> None:
    changed = GOOD[:place] + text + GOOD[place + length :]
    assert code_of(changed, tmp_path) in (0, 1, 2, 4), changed
    assert "internal error" not in capsys.readouterr().err


@QUICK
@given(
    place=st.integers(0, len(GOOD_CSV)),
    length=st.integers(0, 4),
    text=st.text("0159.-+einfaNA_:,;'\" \n\r\t\0", max_size=4),
)
def test_run_any_change_of_a_good_csv_file_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, length: int, text: str
) -> None:
    changed = GOOD_CSV[:place] + text + GOOD_CSV[place + length :]
    (tmp_path / "rows.csv").write_text(changed, newline="")
    assert code_of(CSV_DATA, tmp_path) in (0, 1, 2, 4), changed
    assert "internal error" not in capsys.readouterr().err


@QUICK
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_run_any_change_of_a_good_npz_file_ends_without_an_internal_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[tuple[int, int]]
) -> None:
    content = bytearray(npz(X=X, y=Y))
    for place, byte in changes:
        content[place % len(content)] = byte
    (tmp_path / "rows.npz").write_bytes(content)
    assert code_of(NPZ_DATA, tmp_path) in (0, 1, 2, 4), changes
    assert "internal error" not in capsys.readouterr().err
