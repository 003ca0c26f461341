"""Removes zero channels from a model, so that a smaller dense network is left.

`jaxprune._trace` finds out which axes of the params belong together; its `tracer` explains how.
Shrinking uses its records:

- `units`: slices of params that stay or go together.
- `groups`: units on the same axes, and which of them can be removed.
- `same_program`: checks that the model without them is the same program.
- `shrink`: removes zero units and compares the outputs.
- `channels`: which channels to prune together, so that `shrink` can remove them.
- `flax_sizes`: makes linen and NNX models run with smaller params.
"""
