"""Counts in messages, with the noun and the verb in the singular where there is one."""


def counted(n: int, noun: str, nouns: str = "") -> str:
    """A count and its noun.

    Args:
      n: the count.
      noun: for one.
      nouns: for any other count; by default `noun` with an s.

    Example:
      >>> counted(1, "leaf", "leaves"), counted(0, "zero"), counted(1234, "weight")
      ('1 leaf', '0 zeros', '1,234 weights')
    """
    return f"{n:,} {noun if n == 1 else nouns or noun + 's'}"


def is_or_are(n: int) -> str:
    """The verb for a count: "is" for one, else "are"."""
    return "is" if n == 1 else "are"
