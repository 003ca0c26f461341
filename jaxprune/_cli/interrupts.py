"""Signals that stop a command: one line, and exit code 128 plus their number, at any moment.

These are Ctrl-C (SIGINT), SIGTERM, which a scheduler sends before it ends a job, and SIGHUP, of a
closed terminal. While modules are imported and nothing is written, the process ends at once: a
`KeyboardInterrupt` in the middle of an import may get lost, or become another error. While a file
is written, they raise `KeyboardInterrupt`, so that temporary files are deleted.
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

# The signals, each with what Python does about it. Windows has no SIGHUP.
_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
if hasattr(signal, "SIGHUP"):
    _USUAL[signal.SIGHUP] = signal.SIG_DFL


def exit_at_signals() -> None:
    """From now on, these signals end the process at once, unless ignored or handled already."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _exit)


def ignore_signals_if_program() -> None:
    """From now on, these signals do nothing if `exit_at_signals` was called.

    For the end of a command: the work is done, but JAX takes a moment to end, in which Python no
    longer handles signals.
    """
    for number in _USUAL:
        if signal.getsignal(number) is _exit:
            signal.signal(number, signal.SIG_IGN)


def exit_if_program(number: int) -> None:
    """Ends the process at once if `exit_at_signals` was called, and otherwise returns.

    Python's own way out would wait for the threads of JAX, and now and then crash in them.
    """
    if signal.getsignal(number) is _exit:
        gc.collect()  # deletes temporary files that only a reference cycle keeps
        _exit(number)


class Stopped(KeyboardInterrupt):
    """What a signal raises, as `number` says which."""

    def __init__(self, number: int):
        self.number = number
        super().__init__()


def number_of(interrupt: KeyboardInterrupt) -> int:
    """The signal that raised an interrupt; that of Ctrl-C for one that Python raised."""
    return interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT


def _exit(number: int, *_: Any) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())  # Python's own stream may be in use
    os._exit(128 + number)


@contextlib.contextmanager
def signals_raise() -> Iterator[list[int]]:
    """In the block, these signals raise `KeyboardInterrupt`; yields a list of those that came.

    Outside a program that called `exit_at_signals`, only Ctrl-C does, and none that is handled.
    Python ignores a `KeyboardInterrupt`, with a traceback, if it is raised in a callback such as
    those of JAX: then the list is not empty, and the traceback is not printed. A module that is
    imported may turn it into another error, which becomes a `KeyboardInterrupt` again.
    """
    interrupts: list[int] = []
    previous = {number: signal.getsignal(number) for number in _USUAL}
    taken = [n for n, old in previous.items() if old in (signal.default_int_handler, _exit)]

    def record(number: int, frame: Any) -> None:
        interrupts.append(number)
        raise Stopped(number)

    report_ignored = sys.unraisablehook

    def report_others(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            report_ignored(ignored)

    for number in taken:
        signal.signal(number, record)
    if taken:
        sys.unraisablehook = report_others
    try:
        yield interrupts
    except Exception:
        if interrupts:
            raise Stopped(interrupts[0]) from None
        raise
    finally:
        sys.unraisablehook = report_ignored
        for number in taken:
            signal.signal(number, previous[number])
