"""SIGINT and SIGTERM as a request that the job reads between two chunks of training.

The handler raises nothing: an exception in the middle of a chunk would find the donated state gone
and nothing left to save.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """A function that tells whether SIGINT or SIGTERM has arrived since the `with` was entered.

    The handlers that were there come back at the end. Outside of the main thread, where Python
    takes no handlers, the function is always False.
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
