"""What every other package builds on: arguments, paths, float bits, shardings, counting."""
