"""What tests of several packages share; `from helpers import says` works in every folder."""

import re


def says(*fragments):
    """A pattern that finds every fragment, in any order, and not inside a longer word or number.

    For `pytest.raises(ValueError, match=says("fc/kernel:", "(7, 5)", "exclude='fc/kernel'"))`:
    tests name the parts of a message that a reader acts on (where, which value, what to type
    instead) and leave the prose between them free.
    """
    return "(?s:" + "".join(f"(?=.*{_whole(fragment)})" for fragment in fragments) + ")"


def assert_says(text, *fragments):
    """Checks that every fragment is in the text, as `says` does."""
    for fragment in fragments:
        assert re.search(_whole(fragment), text), (fragment, text)


def _whole(fragment):
    starts = r"(?<![\w/-])(?<!\d\.)" if re.match(r"[\w-]", fragment) else ""
    ends = r"(?![\w/])(?!\.\d)" if re.search(r"\w$", fragment) else ""
    return starts + re.escape(fragment) + ends
