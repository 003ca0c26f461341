"""The commands of `python -m jaxprune`: options, work, output."""
