"""Follows a model's jaxpr and records what it does to the axes of the params, without running it.

Start with `tracer`, which explains how:

- `traced_arrays`: what is known about one array.
- `tracer`: follows a jaxpr and records which axes are joined, frozen and summed over.
- `axis_rules`, `axis_shapes`: one rule per primitive.
- `constant_folding`: elementwise primitives in NumPy, for values that are known.
- `program`: the jaxpr of a model, and how to trace it.
"""
