"""A user's own code: imported, called under guard, and what it yields read and checked.

In the order of a call: `function` imports it; `guard` calls it, with `surroundings`, `alarm` and
`tracebacks`; `problem_api` is what it is given; `generator` takes a scratch function's steps, and
`updates` reads what they yield. Nothing here imports torch.
"""
