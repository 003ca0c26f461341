"""The prune state and its masks: how to store, apply, convert and read them."""
