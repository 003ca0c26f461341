"""The optax transformations: `prune`, `rigl` and the one-shot functions."""
