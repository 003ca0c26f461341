"""Zhu & Gupta (2017), "To prune, or not to prune" (arXiv:1710.01878), reproduced at two scales.

At full size without data: `sizes` counts the parameters of the paper's own networks, defined in
`convolutional` and `recurrent`, beside what `published` quotes. At a size that trains here: a
byte-level language model, deep convolutional networks and translation. `python -m benchmarks.paper`
lists the commands; docs/paper.md tells what came out.
"""
