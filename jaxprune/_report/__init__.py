"""What will be pruned, what was pruned, and whether it holds."""
