"""The prune state and its masks: how they are stored, applied, converted and found."""
