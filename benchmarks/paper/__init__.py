"""Reproduces Zhu & Gupta (2017), "To prune, or not to prune" (arXiv:1710.01878), at two scales.

At full size and without data, `sizes` counts the parameters of the paper's networks, which
`convolutional` and `recurrent` define, and compares them with the numbers in `published`. At a size
that trains on a CPU, there are a byte-level language model, deep convolutional networks and
translation. `python -m benchmarks.paper` lists the commands; docs/paper.md reports the results.
"""
