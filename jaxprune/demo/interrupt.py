"""SIGINT and SIGTERM as requests to stop, which the job checks between two chunks of training.

The handler does not raise: a chunk donates its state, so after an exception in the middle of a
chunk there would be no state left to save.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns True once SIGINT or SIGTERM has arrived in the `with` block.

    The previous handlers are restored at the end. In other threads than the main one, where Python
    does not allow signal handlers, the function always returns False.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    before = {
        number: signal.signal(number, lambda *_: requested.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield requested.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
