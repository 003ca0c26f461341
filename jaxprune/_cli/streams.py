"""Standard output and error that can always be written to."""

import os
import sys


def open_streams() -> None:
    """Makes both streams take any text: nothing if closed, and escapes for what has no encoding.

    Python has None in place of a stream that is closed when the process starts (`>&-`), and raises
    where the encoding of a stream, such as ASCII, lacks a character, such as one of a leaf's name.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
