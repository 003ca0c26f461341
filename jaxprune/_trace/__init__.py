"""Follows a model's jaxpr and records what it does to the axes of the params, without running it.

It does so in two ways. Start with `tracer` and with `products`, which explain how.

Which axes must have equal lengths (for `shrink`):

- `traced_arrays`: what is known about one array.
- `tracer`: follows a jaxpr and records which axes are joined, frozen and summed over; `records` has
  the form of what it records, `label_sets` what must stay or go together.
- `axis_rules`, `axis_shapes`: one rule per primitive.
- `constant_folding`: elementwise primitives in NumPy, for values that are known.

Which axes of the params a product sums over:

- `leaf_views`: which entries of a leaf an array holds.
- `view_rules`, `position_rules`: one rule per primitive. `operand_roles`: those of products.
- `view_tracer`, `products`: follow a jaxpr and record every product of a param.
- `trails`: which axes of their results are a stack of models.
- `use_roles`, `axis_roles`: the role that each axis of a leaf has in its products.

`program` is the jaxpr of a model, and how to trace it. `model_arguments` checks arguments,
`equations` reads constants and programs out of equations.
"""
