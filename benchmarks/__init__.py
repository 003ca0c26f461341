"""Measured speed: `python -m benchmarks` times selection and the training step and writes it down.

Nothing here is part of the library. `bench_select` and `bench_step` say what they compare,
`common` how a time is taken, `plots` draws what was measured.
"""
