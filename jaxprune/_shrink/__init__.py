"""Removes zero channels from a model, so that a smaller dense network is left.

`jaxprune._trace` finds out which axes of the params belong together; its `tracer` explains how.
Shrinking uses its records:

- `units`: slices of params that stay or go together; `cut`: what is left of an axis without some.
- `groups`: units on the same axes; `balance`: those of parts that must stay equally long.
- `fit`: which groups can be removed together; `same_program`: whether the model without them is the
  same program; `places`: where in the model it is not.
- `shrink`: removes zero units (`removal`), also from other trees (`along`), and compares outputs
  (`outputs`). `allow`: cuts that change them.
- `report`, `costs`: what was removed, what was refused and why, and what each layer costs.
- `channels`: which channels to prune together, so that `shrink` can remove them; `not_zero`: along
  which axes.
- `flax_sizes`, `linen_sizes`, `haiku_sizes`: make NNX, linen and Haiku models run with smaller
  params; `resize_linen` makes a module of the new sizes.
"""
