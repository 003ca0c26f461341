"""What to prune and how much: schedules, scores, structures, distributions, budgets."""
