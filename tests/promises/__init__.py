"""The promises of docs/promises.md, each checked on many generated cases.

`python -m tests.promises` runs them, a chunk of cases at a time, and writes their results to
benchmarks/results/promises-cpu.json after each chunk. `tests/integration/test_promises.py` runs a
few chunks of each.
"""
