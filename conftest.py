"""Runs the tests in the stricter modes of JAX, as in `JAX_NUMPY_DTYPE_PROMOTION=strict pytest`.

The environment variables of JAX turn the modes on; `modes` lists them. A test that cannot run in a
mode is marked `skip_in(*modes, reason=...)`. Where another library does what a mode forbids (strict
promotion makes `optax.adam` raise), the test is skipped with the place in that library. So is a
test whose network adds a bias to a batch, as networks of users do, where ranks may not be promoted.
The code of jaxprune must run in every mode, and that of the tests in all others.
"""

import doctest
import functools
import importlib.util
import pathlib
import traceback

import pytest

pytest.register_assert_rewrite("bad_input", "combinations", "helpers")  # shared by tests/
collect_ignore = ["docs/conf.py", "docs/extension"]  # Sphinx runs them
LIBRARIES = ("jax", "optax", "flax", "equinox", "haiku")
ROOT = pathlib.Path(__file__).parent
# Why examples of the documentation are skipped in a mode.
_TABLES = {"x64": "its tables say float32"}
_BIASES = {"rank": "it adds a bias to a batch of rows"}
PAGES = {
    **dict.fromkeys(("README.md", "algorithms.md"), _TABLES | _BIASES),
    **dict.fromkeys(("sparse-from-the-start.md", "which-leaves.md", "index.md"), _TABLES),
    **dict.fromkeys(("is-it-working.md", "tour.md", "combining-with-optax.md"), _TABLES),
    "recipes.md": _TABLES | {"strict": "the actions of its agent are integers"},
    **dict.fromkeys(("shrink.py", "channels.py", "shrinking.md", "sharding.md"), _BIASES),
    "troubleshooting.md": {"debug_nans": "it shows how NaN is reported"},
    "prune_state.py": {"debug_nans": "it masks a NaN"},
}


@functools.cache
def modes():
    """Whether each mode is on. Imports jax only now, after tests/conftest.py has configured it."""
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
        arguments = item.callspec.params if hasattr(item, "callspec") else {}
        page = arguments.get("page", item.path)  # tests/docs/test_pages.py runs several
        for mode, reason in PAGES.get(getattr(page, "name", ""), {}).items():
            item.add_marker(pytest.mark.skip_in(mode, reason=reason))
        for mark in item.iter_markers("skip_in"):
            assert set(mark.args) <= modes().keys(), f"{item.nodeid}: {mark.args}"
            if active := [mode for mode in mark.args if modes()[mode]]:
                reason = f"{', '.join(active)}: {mark.kwargs['reason']}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    return (yield from _skips_what_a_mode_forbids())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    return (yield from _skips_what_a_mode_forbids())


def _skips_what_a_mode_forbids():
    try:
        return (yield)
    except Exception as error:
        on = ", ".join(mode for mode, is_on in modes().items() if is_on)
        for cause in _causes(error):
            if on and _is_of_a_mode(cause) and (place := _place_outside(cause)):
                pytest.skip(f"{on}: {place} does what the mode forbids")
        raise


def _causes(error):
    """The error, those that it was raised from, and those that were being handled."""
    cause = error.exc_info[1] if isinstance(error, doctest.UnexpectedException) else error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_of_a_mode(error):
    promotes = isinstance(error, ValueError | TypeError) and "promotion" in str(error)
    return promotes or isinstance(error, FloatingPointError)


@functools.cache
def _folder(library):
    spec = importlib.util.find_spec(library)
    return None if spec is None else pathlib.Path(spec.origin).parent


def _place_outside(error):
    """File and line of the innermost frame outside jax if a mode may be broken there, else None."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = pathlib.Path(frame.filename)
        libraries = [name for name in LIBRARIES if _folder(name) in path.parents]
        if "jax" not in libraries and path.name not in ("contextlib.py", "functools.py"):
            if libraries:
                return f"{path.relative_to(_folder(libraries[0]).parent)}:{frame.lineno}"
            of_library = ROOT / "jaxprune" in path.parents
            if ROOT in path.parents and not of_library and "rank_promotion" in str(error):
                return f"{path.relative_to(ROOT)}:{frame.lineno}"
            return None
    return None
