"""Block-sparse products: packed matrices in plain JAX, and Flax models that run from them."""
