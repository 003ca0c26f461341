"""Products that skip dropped blocks, in plain JAX and in Flax layers."""
