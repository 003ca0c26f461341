"""Benchmarks of jaxprune; they are not part of the library.

`python -m benchmarks` runs them and writes JSON files and plots to `benchmarks/results`. Each
`bench_*` module starts with the question that it answers and the alternatives that it compares.
`common` holds how times are measured, `plots` draws the results, `payoff` writes the tables of
docs/payoff.md, and `benchmarks.paper` reproduces the experiments of Zhu & Gupta (2017).
"""
