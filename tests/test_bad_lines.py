"""A line added to a good spec: each is refused with one clear message, at its place."""

from __future__ import annotations

import pytest

from tests.refusals import GOOD, Refused, cases, refused, short

__all__ = ["refused"]  # a fixture

LINES = cases("""
epochs: 0 => 6:9: epochs: must be a whole number ≥ 1, got 0
epochs: 1.5 => 6:9: epochs: must be a whole number, got 1.5
epochs: many => 6:9: epochs: must be a whole number, got 'many'
epochs: true => 6:9: epochs: must be a whole number, got true
epochs: null => 6:9: epochs: has no value
epochs: .inf => 6:9: epochs: must be a whole number, got inf
batch_size: 0 => 6:13: batch_size: must be `full` or a whole number ≥ 1
batch_size: 2.5 => 6:13: batch_size: must be `full` or a whole
batch_size: half => 6:13: batch_size: must be `full` or a whole
batch_size: true => 6:13: batch_size: must be `full` or a whole
weight_decay: 'O.1' => 6:15: weight_decay: must be a number ≥ 0, got 'O.1'
weight_decay: -0.1 => 6:15: weight_decay: must be a number ≥ 0
weight_decay: .nan => 6:15: weight_decay: must be a number ≥ 0, got nan
weight_decay: .inf => 6:15: weight_decay: must be a number ≥ 0, got inf
weight_decay: true => 6:15: weight_decay: must be a number ≥ 0, or {
weight_decay: {weight: 0.1}
    6:1: weight_decay.bias: is required: 0 means no weight decay on the bias
weight_decay: {wieght: 1, weight: 1, bias: 1}
    6:16: weight_decay.wieght: unknown key; did you mean `weight`?
weight_decay: {weight: a, bias: 0} => 6:24: weight_decay.weight: must be a number, got 'a'
optimizer: muon => 6:12: optimizer: torch.optim.Muon accepts only matrices, and a bias
bias: false↵optimizer: {name: muon, ns_steps: 100}
    7:35: optimizer.ns_steps: must be a whole number ≤ 99, got 100
bias: false↵optimizer: {name: muon, ns_steps: 1.5}
    7:35: optimizer.ns_steps: must be a whole number, got 1.5
bias: false↵optimizer: {name: muon, ns_coefficients: [1, 2]}
    7:42: optimizer.ns_coefficients: must be a list of three numbers, got [1, 2]
bias: false↵optimizer: {name: muon, ns_coefficients: [1, 2, a]}
    7:49: optimizer.ns_coefficients[2]: must be a number, got 'a'
bias: false↵optimizer: {name: muon, adjust_lr_fn: orignal}
    7:39: optimizer.adjust_lr_fn: must be one of original, match_rms_adamw, got
bias: false↵optimizer: {name: muon, momentum: -0.1}
    7:35: optimizer.momentum: must be a number ≥ 0, got -0.1
optimizer: {name: adamw, betas: [0.9, 1]}
    6:39: optimizer.betas[1]: must be a number < 1, got 1
optimizer: {name: adamw, betas: 0.9} => 6:33: optimizer.betas: must be a list of two numbers
optimizer: {name: sgd, momentum: -1} => 6:34: optimizer.momentum: must be a number ≥ 0, got -1
optimizer: sdg => 6:12: optimizer: no optimizer is called 'sdg'; did you
optimizer: [sgd] => 6:12: optimizer: must be an optimizer's name, or {
optimizer: {momentum: 0.9} => 6:12: optimizer.name: is required: one of adadelta
optimizer: {name: sgd, momentm: 0.9}
    6:24: optimizer.momentm: unknown key; did you mean `momentum`?
optimizer: {name: sgd, nesterov: true}
    6:34: optimizer.nesterov: needs a momentum above 0 and no dampening
optimizer: {name: sgd, momentum: 0.9, nesterov: true, dampening: 0.1}
    6:49: optimizer.nesterov: needs a momentum above 0 and no dampening
optimizer: {name: rprop, etas: [1.2, 0.5]}
    6:32: optimizer.etas: must be a number between 0 and 1, and one above 1, as in torch
optimizer: {name: adafactor, beta2_decay: 0.8}
    6:43: optimizer.beta2_decay: must be a number ≤ 0, got 0.8
optimizer: {name: adafactor, eps: 1e-3}
    6:35: optimizer.eps: must be a list of two numbers, got 0.001
init: ones => 6:7: init: must be one of zeros, {constant: C}, {normal
init: {constant: 1, normal: {std: 1}} => 6:7: init: must be one of zeros
init: {} => 6:7: init: must be one of zeros
init: {constant: a} => 6:18: init.constant: must be a number, got 'a'
init: {constant: .inf} => 6:18: init.constant: must be a finite number
init: {normal: {std: -1}} => 6:22: init.normal.std: must be a number ≥
init: {normal: {}} => 6:8: init.normal.std: is required
init: {normal: {std: 1, seed: -1}} => 6:31: init.normal.seed: must be a whole number ≥ 0, got -1
init: {weight: [1, 2]} => 6:7: init: must give both weight and bias; bias
init: {weight: [1, 2, 3], bias: [0]}
    6:16: init.weight: must have 2 numbers, one for each feature, got 3
init: {weight: [1, 2], bias: [0, 1]} => 6:30: init.bias: must have at mo
init: {weight: [1, a], bias: 0} => 6:20: init.weight[1]: must be a num
init: {constnt: 1} => 6:8: init.constnt: unknown key; did you mean `constant`?
loss: mae => 6:7: loss: must be one of bce, bce_with_logits, cross_entropy, mse, got 'mae'
loss: cross_entropy => 6:7: loss: cross_entropy does not fit the model
shuffle: true => 6:10: shuffle: needs a seed, like {seed: 0}
shuffle: 5 => 6:10: shuffle: must be false or {seed: 0}, got 5
shuffle: {} => 6:1: shuffle.seed: is required
shuffle: {seed: -1} => 6:17: shuffle.seed: must be a whole number
shuffle: {seed: 18446744073709551616} => 6:17: shuffle.seed: must be a whole numb
drop_last: yes => 6:12: drop_last: must be true or false, got 'yes'
accumulate: 0 => 6:13: accumulate: must be a whole number ≥ 1, got 0
lr_schedule: step => 6:14: lr_schedule: must be none or a mapping like
lr_schedule: {every: 5} => 6:1: lr_schedule.kind: is required
lr_schedule: {kind: step} => 6:14: lr_schedule: the kind step needs every and factor
lr_schedule: {kind: cosine, steps: 5, factor: 1}
    6:47: lr_schedule.factor: the kind cosine has no such key; it takes steps, floor, per
lr_schedule: {kind: cosin, steps: 5}
    6:21: lr_schedule.kind: must be one of step, multistep, exponential, cosine, linear, warmup,
lr_schedule: {kind: step, every: 5, gamma: 1}
    6:37: lr_schedule.gamma: unknown key; did you mean `factor`?
lr_schedule: {kind: cosine, T_max: 5} => 6:29: lr_schedule.T_max: unknown key; did you mean `steps`
lr_schedule: {kind: one-cycle, steps: 5, max_lr: 1}
    6:42: lr_schedule.max_lr: unknown key; the largest lr is `lr` itself
lr_schedule: {kind: one-cycle, steps: 5, cycle_momentum: true}
    6:42: lr_schedule.cycle_momentum: unknown key; the momentum stays the optimizer's at each
lr_schedule: {kind: one-cycle} => 6:14: lr_schedule: the kind one-cycle needs steps
lr_schedule: {kind: one-cycle, steps: 4, pct_start: 0.25}
    6:53: lr_schedule.pct_start: pct_start times steps is 1, where OneCycleLR divides by 0
lr_schedule: {kind: one-cycle, steps: 4, pct_start: 1.5} => must be a number ≤ 1, got 1.5
lr_schedule: {kind: one-cycle, steps: 4, div_factor: 0} => must be a number > 0, got 0
lr_schedule: {kind: one-cycle, steps: 4, anneal_strategy: cosine}
    6:59: lr_schedule.anneal_strategy: must be one of cos, linear, got 'cosine'
lr_schedule: {kind: multistep, milestones: [5, 3], factor: 0.1}
    6:44: lr_schedule.milestones: must increase, got [5, 3]
lr_schedule: {kind: multistep, milestones: [0], factor: 0.1}
    6:45: lr_schedule.milestones[0]: must be a whole number ≥ 1, got 0
lr_schedule: {kind: multistep, milestones: 5} => 6:44: lr_schedule.milestones: must be a list, got 5
lr_schedule: {kind: linear, steps: 5, start_factor: 0}
    6:53: lr_schedule.start_factor: must be a number > 0, got 0
lr_schedule: {kind: linear, steps: 5, end_factor: 2}
    6:51: lr_schedule.end_factor: must be a number ≤ 1, got 2
lr_schedule: {kind: list, values: []} => 6:35: lr_schedule.values: must not be empty, got []
clip_norm: 0 => 6:12: clip_norm: must be a number > 0, got 0
clip_norm: 1↵clip_value: 1 => 7:13: clip_value: clip_norm and clip_value ex
dtype: float16 => 6:8: dtype: must be float64, float32 or {scratch: float64
dtype: {scratch: float64} => 6:1: dtype.framework: is required
dtype: {scratch: float64, framework: half}
    6:38: dtype.framework: must be one of float32, float64, got 'half'
dtype: float32↵weight_decay: 1e300
    7:15: weight_decay.weight: float32 holds numbers up to 3.4e38, got 1e+300; use float64
dtype: {scratch: float64, framework: float32}↵init: {weight: [1, 1e39], bias: 0}
    7:20: init.weight[1]: float32 holds numbers up to 3.4e38, got 1e+39
convention: torch => 6:13: convention: no convention is called 'torch'; did you mean `pytorch`?
convention: [pytorch] => 6:13: convention: must be a convention's name
convention: {dcay: gradient} => 6:14: convention.dcay: unknown key; did you mean `decay`?
convention: {decay: coupled}
    6:21: convention.decay: must be one of gradient, after-momentum, decoupled,
compare: [] => 6:10: compare: must not be empty, got []
compare: [weights] => 6:11: compare[0]: must be one of parameters, loss,
compare: loss => 6:10: compare: must be a list, got 'loss'
compare: [loss, loss] => 6:10: compare: must contain parameters and
tolerance: 8 => 6:12: tolerance: must be {rounding: 8}, {rtol
tolerance: {} => 6:12: tolerance: must be {rounding: 8}, {rtol
tolerance: {rounding: 8, atol: 1}
    6:12: tolerance: takes either rounding, for one step, or rtol and atol
tolerance: {exact: true} => 6:12: tolerance: must be {rounding: 8}
tolerance: {rtol: -1} => 6:19: tolerance.rtol: must be a number ≥ 0
tolerance: {rtoll: 1} => 6:13: tolerance.rtoll: unknown key; did you mean `rtol`?
tolerance: {weigth: exact} => 6:13: tolerance.weigth: unknown key; did you mean `weight`?
tolerance: {weight: close}
    6:21: tolerance.weight: must be {rounding: 8}, {rtol: 1e-5, atol: 1e-8} or exact
tolerance: {bias: {rounding: 1, rtol: 1}}
    6:19: tolerance.bias: takes either rounding, for one step, or rtol and atol
tolerance: {rounding: 0} => 6:23: tolerance.rounding: must be a number > 0
scratch: 3
    6:10: scratch: must be a Python file and a function in it, like my_train.py:train, or an opt
scratch: my.py => 6:10: scratch: must be a Python file and a function
scratch: my.py:3f => 6:10: scratch: must be a Python file and
scratch: my.py:f:g => 6:10: scratch: must be a Python file and
framework: torch
    a function in it, like my_train.py:train, or a mapping like {lr: 0.2} of settings for
framework: {} => 6:12: framework: must have lr, weight_decay, optimizer or processes
framework: {processes: 1} => 6:24: framework.processes: must be a whole number ≥ 2, got 1
framework: {processes: 2.5} => 6:24: framework.processes: must be a whole number, got 2.5
framework: {lrr: 1} => 6:13: framework.lrr: unknown key; did you m
framework: {momentum: 0.9}
    6:13: framework.momentum: unknown key; known here: lr, weight_decay, optimizer
framework: {lr: -1} => 6:17: framework.lr: must be a number ≥ 0, got -1
framework: {lr: 1, lr: 2} => 6:20: framework.lr: is given twice, first in line 6; keep one of them
framework: {weight_decay: {weight: a, bias: 0}}
    6:36: framework.weight_decay.weight: must be a number, got 'a'
framework: {weight_decay: {weight: 1}}
    6:13: framework.weight_decay.bias: is required: 0 means no weight decay on the bias
framework: {optimizer: muon} => 6:24: framework.optimizer: torch.optim.Muon accepts only matrices
framework: {optimizer: {name: sgd, momentm: 1}}
    6:36: framework.optimizer.momentm: unknown key; did you mean `momentum`?
expect: diverged => 6:9: expect: must be {verdict: diverged, step: 2
expect: {} => 6:9: expect: must have verdict, step or cause
expect: {verdict: diverge}
    6:19: expect.verdict: must be one of equivalent, diverged, inconclusive, got 'diverge'
expect: {step: 0} => 6:16: expect.step: must be a whole number ≥ 1, got 0
expect: {cause: penalty-double}
    6:17: expect.cause: no cause is called 'penalty-double'; did you mean `penalty-doubled`?
expect: {cause: penalty-scaled}
    6:17: expect.cause: recognising the cause penalty-scaled is planned
expect: {verdict: equivalent, step: 2}
    6:9: expect: an equivalent run has no step and no cause; expect the verdict alone
expect: {verdict: inconclusive, cause: penalty-doubled}
    6:9: expect: an inconclusive run has no cause
weigth_decay: 0.1 => 6:1: weigth_decay: unknown key; did you mean `weight_decay`?
EPOCHS: 1 => 6:1: EPOCHS: unknown key; did you mean `epochs`?
learning_rate: 1 => 6:1: learning_rate: unknown key; did you mean `lr`
zzz: 1 => 6:1: zzz: unknown key; known here: data, model, loss, bias
3: 1 => 6:1: 3: unknown key; known here: data, model
lr: 0.2 => 6:1: lr: is given twice, first in line 5; keep one of them
? [a, b]↵: 1 => 6:3: a key must be a string
epochs: &a 1 => 6:9: a spec takes no anchors or aliases
epochs: *a => 6:9: a spec takes no anchors or aliases
compare: [&a loss] => 6:11: a spec takes no anchors or aliases
epochs: ! 1 => 6:9: a spec takes no tags; remove it
epochs: !!python/object:os.system x => 6:9: a spec takes no tags; remove it
<<: {lr: 1} => 6:1: '<<': unknown key
---↵lr: 1 => 6:1: not valid YAML: expected a single document in the stream
epochs:5 => 7:1: not valid YAML: while scanning a simple key, could
epochs: 5: 6 => 6:10: not valid YAML: mapping values are not allowed here
compare: [loss => 7:1: not valid YAML: while parsing a flow sequence
loss: "bce => 7:1: not valid YAML: while scanning a quoted scalar
""") | {
    f"epochs: {10**400}": "6:9: epochs: must be a whole number ≤ 1,000,000,000,",
    "epochs: " + "9" * 5000: "6:9: epochs: must be a finite number, got 5,000 digits",
    f"weight_decay: {10**400}": "6:15: weight_decay: must be a finite",
    '"\\e[31m\\n": 1': "6:1: '\\x1b[31m\\n': unknown key; known here: data",
    "init:\n\tconstant: 1": "7:1: not valid YAML: while scanning for the next token, found",
    "init:\n\tconstant: 2": "; indent with spaces, not tabs",
    "epochs:6": "a key ends in a colon and a space",
    "epochs: 6: 7": "and quote a value that holds a colon",
    "x: " + "[" * 5000 + "]" * 5000: "6:35: nested too deeply for a spec",
    "x: " + "{a: " * 5000: "nested too deeply for a spec",
    "x: \x07": "6:4: not valid YAML: the character U+0007 is not allowed",
    "\0": "6:1: not valid YAML: the character U+0000 is not allowed",
    "loss: " + "x" * 10**6: "6:7: loss: must be one of bce, bce_with_logits, cross",
    "x" * 1000 + ": 1": "6:1: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...: unknown key",
}


@pytest.mark.parametrize(("line", "expected"), LINES.items(), ids=short)
def test_run_bad_line(line: str, expected: str, refused: Refused) -> None:
    message = refused.message(spec_yaml=f"{GOOD}{line}\n".encode())
    assert message.startswith("spec.yaml:")
    assert expected in message


@pytest.mark.parametrize("key", ["scratch", "framework"])
def test_run_code_in_a_file_that_is_not_there(key: str, refused: Refused) -> None:
    message = refused.message(spec_yaml=f"{GOOD}{key}: my.py:train\n".encode())
    assert "spec.yaml: my.py:train: there is no file my.py\n" in message
    assert "relative to the spec" in message
