"""Ctrl-C on the command line: exit code 130 and one line, at whatever moment it comes.

While modules are imported and nothing is written, the process ends at once: a `KeyboardInterrupt`
in the middle of an import may get lost, or become another error. While a file is written, Ctrl-C
raises `KeyboardInterrupt`, so that temporary files are deleted.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

STOPPED = "Stopped; no file was changed half-way."


def exit_at_ctrl_c() -> None:
    """From now on, Ctrl-C ends the process at once; unless SIGINT is ignored or handled already."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def ignore_ctrl_c_if_program() -> None:
    """From now on, Ctrl-C does nothing if `exit_at_ctrl_c` was called.

    For the end of a command: the work is done, but JAX takes a moment to end, in which Python no
    longer handles signals.
    """
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def exit_if_program() -> None:
    """Ends the process at once if `exit_at_ctrl_c` was called, and otherwise returns.

    Python's own way out would wait for the threads of JAX, and now and then crash in them.
    """
    if signal.getsignal(signal.SIGINT) is _exit:
        gc.collect()  # deletes temporary files that only a reference cycle keeps
        _exit()


def _exit(*_: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())  # Python's own stream may be in use
    os._exit(130)


@contextlib.contextmanager
def ctrl_c_raises() -> Iterator[list[int]]:
    """In the block, Ctrl-C raises `KeyboardInterrupt`; yields a list that it also appends to.

    Python ignores a `KeyboardInterrupt`, with a traceback, if it is raised in a callback such as
    those of JAX: then the list is not empty, and the traceback is not printed. A module that is
    imported may turn it into another error, which becomes a `KeyboardInterrupt` again.
    """
    interrupts: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if previous not in (signal.default_int_handler, _exit):  # SIGINT is ignored, or handled
        yield interrupts
        return

    def record(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    report_ignored = sys.unraisablehook

    def report_others(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            report_ignored(ignored)

    signal.signal(signal.SIGINT, record)
    sys.unraisablehook = report_others
    try:
        yield interrupts
    except Exception:
        if interrupts:
            raise KeyboardInterrupt from None
        raise
    finally:
        sys.unraisablehook = report_ignored
        signal.signal(signal.SIGINT, previous)
