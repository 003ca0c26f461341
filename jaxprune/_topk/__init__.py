"""Exact selection of the largest scores by counting; it knows nothing of pruning."""
