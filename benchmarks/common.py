"""How times are measured and results are written; shared by all benchmarks.

Calls that are compared run in the same process and take turns: each is called once (a short one a
few times), then the next round begins. Other load on the machine therefore affects all of them
alike. Every call is warmed up on the operands that it is timed on, and `block_until_ready` waits
for its result. A row records the median over all timed calls, the fastest and the slowest.
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
# Short calls repeat within their turn: the median of seven calls of 50 us each is too noisy.
_TURN_SECONDS = 0.02
# If the first call takes longer than this, it is the only measurement.
SLOW_SECONDS = 15.0

Row = dict[str, Any]


class Call(NamedTuple):
    """A call to time, an untimed preparation before each call, and the most calls in a turn."""

    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    most: int = 15


class Case(NamedTuple):
    """One comparison: its name, which `--only` matches, and a function that measures its rows."""

    name: str
    rows: Callable[[], list[Row]]


class Check(NamedTuple):
    """A measured number and its limit: an upper limit, or with `at_least` a lower one."""

    target: str
    limit: float
    measured: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        """Whether the number is within its limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


class Timing(NamedTuple):
    """Milliseconds per call: median, fastest, slowest, interquartile range, and how many calls."""

    median_ms: float
    min_ms: float
    max_ms: float
    iqr_ms: float
    calls: int

    @staticmethod
    def of(seconds: Sequence[float]) -> "Timing":
        """Summarizes the seconds of every call."""
        ms = sorted(1e3 * s for s in seconds)
        quarters = statistics.quantiles(ms, n=4) if len(ms) > 1 else [ms[0]] * 3
        return Timing(statistics.median(ms), ms[0], ms[-1], quarters[2] - quarters[0], len(ms))


def seconds_of(call: Call) -> float:
    """Seconds from the start of one call until its result is ready; preparation is not timed."""
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
    """Times the calls in turns, after one call of each as a warm-up.

    Args:
      calls: the calls to time, by name.
      rounds: how many turns each call gets. Short calls repeat within their turn.
      slow: seconds. If the warm-up call takes longer, it is the only measurement of that call.

    Returns:
      One `Timing` per name.
    """
    ready = {name: call if isinstance(call, Call) else Call(call) for name, call in calls.items()}
    warm_up = {name: seconds_of(call) for name, call in ready.items()}
    seconds = {name: [s] if s > slow else [] for name, s in warm_up.items()}
    turns = {
        name: min(max(int(_TURN_SECONDS / s), 1), ready[name].most) for name, s in warm_up.items()
    }
    for _ in range(rounds):
        for name, call in ready.items():
            if warm_up[name] <= slow:
                seconds[name] += [seconds_of(call) for _ in range(turns[name])]
    return {name: Timing.of(s) for name, s in seconds.items()}


class Compiled(NamedTuple):
    """A compiled function, and how long that took: wall-clock seconds, and CPU seconds in all."""

    executable: Any
    trace_s: float
    compile_s: float
    cpu_s: float


def compiled(function: Any, *args: Any) -> Compiled:
    """Compiles a jitted function for `args`; calling the executable compiles nothing more."""
    cpu, start = time.process_time(), time.perf_counter()
    lowered = function.lower(*args)
    middle = time.perf_counter()
    executable = lowered.compile()
    end = time.perf_counter()
    return Compiled(executable, middle - start, end - middle, time.process_time() - cpu)


def n_cores() -> int:
    """Number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def cores(count: int) -> Iterator[int]:
    """Pins every thread of this process to `count` cores; yields the number it got."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    allowed = os.sched_getaffinity(0)
    chosen = set(sorted(allowed)[:count])
    _pin(chosen)
    try:
        yield len(chosen)
    finally:
        _pin(allowed)


def _pin(to_cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            os.sched_setaffinity(int(thread), to_cores)


def temp_bytes(executable: Any) -> int | None:
    """Temporary bytes of a compiled program, besides arguments and results, as XLA reports them."""
    analysis = executable.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes


def free_bytes() -> float:
    """Free bytes on the device, or of the host's RAM; infinity if neither is known."""
    if stats := jax.devices()[0].memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * float(line.split()[1])
    return float("inf")


def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> Row:
    """The machine, the versions and the commit that produced the numbers."""
    device = jax.devices()[0]
    return {
        "backend": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processor": _processor(),
        "vectors": _vectors(),
        "cores": n_cores(),
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
    """Load average over 1, 5 and 15 minutes; empty if the system does not report it."""
    return [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else []


def _processor() -> str:
    return _in_cpuinfo("model name") or platform.processor()


def _vectors() -> str:
    """The widest vector instructions of the processor; "" if the system does not tell."""
    flags = _in_cpuinfo("flags").split()
    names = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse2": "SSE2"}
    return next((name for flag, name in names.items() if flag in flags), "")


def _in_cpuinfo(field: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    return ""


def _commit() -> str | None:
    """The commit of the library; `+changes` is appended if there are uncommitted changes."""
    import jaxprune

    def git(*args: str) -> str:
        folder = Path(jaxprune.__file__).parent
        result = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+changes" if git("status", "--porcelain", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, atomically: an existing file is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
