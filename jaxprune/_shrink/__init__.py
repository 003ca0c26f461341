"""Removes zero channels from a model, so that a smaller dense network is left.

Tracing finds out which axes of the params belong together. Start with `tracer`, which explains how:

- `traced_arrays`: what is known about one array.
- `tracer`: follows a jaxpr and records which axes are joined, frozen and summed over.
- `axis_rules`, `axis_shapes`: one rule per primitive.
- `constant_folding`: elementwise primitives in NumPy, for values that are known.
- `program`: the jaxpr of a model, and how to trace it.

Shrinking uses the records of the tracer:

- `units`: slices of params that stay or go together.
- `groups`: units on the same axes, and which of them can be removed.
- `same_program`: checks that the model without them is the same program.
- `shrink`: removes zero units and compares the outputs.
- `channels`: which channels to prune together, so that `shrink` can remove them.
- `flax_sizes`: makes linen and NNX models run with smaller params.
"""
