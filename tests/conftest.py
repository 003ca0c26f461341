"""Settings of every test: on the CPU, as eight devices, with fixed keys.

The environment is set before anything imports jax, which reads it once. `JAX_PLATFORMS` and
`XLA_FLAGS` that are already set win, so `JAX_PLATFORMS=cuda pytest -n0` runs the suite on a GPU.
On the CPU, programs are compiled quickly and not for speed, which takes half the time;
`XLA_FLAGS=--xla_backend_optimization_level=3 pytest` compiles them as a user does. Quick code is
for AVX, which lacks the fused multiply-add: with it the same sum in two programs may differ in its
last bit, and jaxlib 0.12 keeps wrong weights among bfloat16 subnormals, which
tests/topk/test_topk.py finds.
What a session compiles is shared by its workers and the processes that tests start, in a folder
that the session removes again; `JAX_COMPILATION_CACHE_DIR` chooses another, which stays.
`HYPOTHESIS_PROFILE=thorough` searches longer and afresh each time; the default, `ci`, draws the
same examples every time, and `short` fewer of them.
"""

import gc
import importlib.metadata
import os
import platform
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in (_flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{_flags} {_DEVICES}=8".strip()
_LEVEL = "--xla_backend_optimization_level"
_quickly = os.environ["JAX_PLATFORMS"] == "cpu" and platform.machine() in ("x86_64", "AMD64")
if _quickly and _LEVEL not in (_flags := os.environ["XLA_FLAGS"]):
    _quick = f"{_LEVEL}=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_max_isa=AVX"
    _quick += " --xla_cpu_parallel_codegen_split_count=1"
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
        _quick += " --xla_cpu_use_fusion_emitters=false"  # later versions have no other way
    os.environ["XLA_FLAGS"] = f"{_flags} {_quick}"

# Half of the time that lowering takes goes into call stacks, which are read when XLA is debugged.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
_cache = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxprune-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name  # workers inherit it
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# The first example compiles for all others.
_common = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile(
    "ci", max_examples=25, derandomize=True, database=None, **_common
)
hypothesis.settings.register_profile(
    "short", max_examples=6, derandomize=True, database=None, **_common
)
hypothesis.settings.register_profile("thorough", max_examples=500, print_blob=True, **_common)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish():
    """What importing the tests has made stays until the end: garbage collection skips it.

    The rest is collected less often: traces allocate so much that it takes one second in twenty.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)


def pytest_unconfigure():
    if _cache is not None:
        _cache.cleanup()


@pytest.fixture
def getkey():
    """A function that returns another `jax.random.key` on each call, the same ones in every run.

    Not for `@given` tests, where a failing example could not be replayed: draw a seed there.
    """
    import jax

    count = iter(range(2**31))
    return lambda: jax.random.fold_in(jax.random.key(0), next(count))


@pytest.fixture
def x64():
    """Runs the test with 64-bit types; `jax.enable_x64` is newer than the oldest jax we support."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Four workers at most: each pays for its own jax import, memory and compilations."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    if hasattr(os, "sched_getaffinity"):
        return min(4, len(os.sched_getaffinity(0)))
    return min(4, os.cpu_count() or 1)


@pytest.fixture(scope="module")
def counted_programs():
    """Makes room where JAX counts the programs of a function, which it does for 8,192 functions.

    findings/jax-counts-8192-functions.sh has more. For tests of `_cache_size()`.
    """
    import jax

    jax.clear_caches()
