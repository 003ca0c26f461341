"""How a time is taken and written down.

Times that are compared are taken in one process, in turns: one call of each, then the next round.
Whatever else the machine does then hits all of them. Every operand is warm, every call is waited
for, and what is recorded is the median of the rounds, with the fastest and the slowest.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune._files.atomic import atomic_file

_ROUNDS = 7
# A short call is repeated within its turn: a median of seven says little when a call takes 50 us.
_TURN_SECONDS = 0.02
# A first call that took longer is its own measurement.
SLOW_SECONDS = 15.0

Row = dict[str, Any]


class Call(NamedTuple):
    """Something to time, what to do before each call off the clock, and most calls in a turn."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    most: int = 15


class Case(NamedTuple):
    """One comparison: a name for the progress bar, and a function that measures its rows."""

    name: str
    rows: Callable[[], list[Row]]


class Check(NamedTuple):
    """A number that should stay within a limit: at most it, or at least it."""

    target: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the number is on the right side."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class Timing(NamedTuple):
    """Milliseconds of one call."""

    median_ms: float
    min_ms: float
    max_ms: float
    iqr_ms: float
    calls: int

    @staticmethod
    def of(seconds: Sequence[float]) -> "Timing":
        ms = sorted(1e3 * s for s in seconds)
        quarters = statistics.quantiles(ms, n=4) if len(ms) > 1 else [ms[0]] * 3
        return Timing(statistics.median(ms), ms[0], ms[-1], quarters[2] - quarters[0], len(ms))


def seconds_of(call: Call) -> float:
    """Seconds of one call, from its start until its result is there."""
    call.prepare()
    start = time.perf_counter()
    jax.block_until_ready(call.run())
    return time.perf_counter() - start


def interleaved(
    calls: Mapping[str, Callable[[], Any] | Call],
    *,
    rounds: int = _ROUNDS,
    slow: float = SLOW_SECONDS,
) -> dict[str, Timing]:
    """Times of each call, taken in turns after one call of each to warm up.

    Args:
      calls: what to time, by name.
      rounds: turns of every call. A short one is repeated within its turn.
      slow: seconds; where the first call takes longer, it is the only one.

    Returns:
      One `Timing` per name.
    """
    ready = {n: c if isinstance(c, Call) else Call(c) for n, c in calls.items()}
    first = {name: seconds_of(call) for name, call in ready.items()}
    seconds = {name: [s] if s > slow else [] for name, s in first.items()}
    turns = {n: min(max(int(_TURN_SECONDS / s), 1), ready[n].most) for n, s in first.items()}
    for _ in range(rounds):
        for name, call in ready.items():
            if first[name] <= slow:
                seconds[name] += [seconds_of(call) for _ in range(turns[name])]
    return {name: Timing.of(s) for name, s in seconds.items()}


class Compiled(NamedTuple):
    """A compiled function, with the seconds that it took, on the wall and of all cores."""

    executable: Any
    trace_s: float
    compile_s: float
    cpu_s: float


def compiled(function: Any, *args: Any) -> Compiled:
    """`function`, which is jitted, compiled for `args`; calling it then compiles nothing more."""
    cpu, start = time.process_time(), time.perf_counter()
    lowered = function.lower(*args)
    middle = time.perf_counter()
    executable = lowered.compile()
    end = time.perf_counter()
    return Compiled(executable, middle - start, end - middle, time.process_time() - cpu)


def n_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def cores(count: int) -> Iterator[int]:
    """Keeps every thread of this process on `count` cores; yields how many it got."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    before = os.sched_getaffinity(0)
    few = set(sorted(before)[:count])
    _pin(few)
    try:
        yield len(few)
    finally:
        _pin(before)


def _pin(to: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            os.sched_setaffinity(int(thread), to)


def temp_bytes(executable: Any) -> int | None:
    """What the compiled program holds besides arguments and results, by its own account."""
    analysis = executable.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def free_bytes() -> float:
    """Memory left for arrays on the device; endless where nobody says."""
    if stats := jax.devices()[0].memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * float(line.split()[1])
    return float("inf")


def version_of(package: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> Row:
    """Where and of what the numbers are."""
    device = jax.devices()[0]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_average": load_average(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {
            p: version_of(p) for p in ("jax", "jaxlib", "optax", "flax", "numpy", "scipy", "torch")
        },
        "threads": threading.active_count(),
    }


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes; empty where the system does not keep it."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """The commit that the library is at, with `+changes` where its files differ from it."""
    import jaxprune

    def git(*args: str) -> str:
        where = Path(jaxprune.__file__).parent
        done = subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+changes" if git("status", "--porcelain", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes all of `value` or nothing; an existing file is replaced in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
