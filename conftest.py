"""The suite in the stricter modes of jax, as in `JAX_NUMPY_DTYPE_PROMOTION=strict pytest`.

The modes are chosen by jax's own variables; `modes` has their names here. A test that says what a
mode forbids, or needs what it takes away, is marked `skip_in(*modes, reason=...)`. What fails
inside another library is skipped and the place named: `optax.adam` itself raises under strict
promotion. Our own code, and what tests compute, must run in every mode.
"""

import doctest
import functools
import importlib.util
import pathlib
import traceback

import pytest

LIBRARIES = ("jax", "optax", "flax", "equinox", "haiku")
# What a mode leaves out of examples that are for reading.
_TABLES = {"x64": "its tables say float32"}
_BIASES = {"rank": "it adds a bias to the rows of a batch"}
PAGES = {
    **{"README.md": _TABLES | _BIASES, "guide.md": _TABLES | _BIASES},
    **dict.fromkeys(("shrink.py", "channels.py"), _BIASES),
    "prune_state.py": {"debug_nans": "it masks a NaN"},
}


@functools.cache
def modes():
    """The modes, and whether each is on; jax is imported after tests/conftest.py has set it up."""
    import jax

    return {
        "strict": jax.config.jax_numpy_dtype_promotion == "strict",
        "rank": jax.config.jax_numpy_rank_promotion == "raise",
        "x64": jax.config.jax_enable_x64,
        "disable_jit": jax.config.jax_disable_jit,
        "debug_nans": jax.config.jax_debug_nans,
    }


def pytest_collection_modifyitems(items):
    for item in items:
        for mode, reason in PAGES.get(item.path.name, {}).items():
            item.add_marker(pytest.mark.skip_in(mode, reason=reason))
        for mark in item.iter_markers("skip_in"):
            assert set(mark.args) <= modes().keys(), f"{item.nodeid}: {mark.args}"
            if found := [mode for mode in mark.args if modes()[mode]]:
                reason = f"{', '.join(found)}: {mark.kwargs['reason']}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    except Exception as error:
        found = error.exc_info[1] if isinstance(error, doctest.UnexpectedException) else error
        on = ", ".join(mode for mode, is_on in modes().items() if is_on)
        if on and _is_of_a_mode(found) and (place := _place_in_another_library(found)):
            pytest.skip(f"{on}: {place} does what the mode forbids")
        raise


def _is_of_a_mode(error):
    promotes = isinstance(error, ValueError | TypeError) and "promotion" in str(error)
    return promotes or isinstance(error, FloatingPointError)


@functools.cache
def _folder(library):
    spec = importlib.util.find_spec(library)
    return None if spec is None else pathlib.Path(spec.origin).parent


def _place_in_another_library(error):
    """Where the innermost frame outside jax is, if that is in another library; else None."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = pathlib.Path(frame.filename)
        found = [name for name in LIBRARIES if _folder(name) in path.parents]
        if "jax" not in found and path.name not in ("contextlib.py", "functools.py"):
            return f"{path.relative_to(_folder(found[0]).parent)}:{frame.lineno}" if found else None
    return None
