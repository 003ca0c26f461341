"""Cases of wrong input: a call, and what its error must say.

The files `test_bad_*.py` in the folders of the packages hold the cases. An error has three parts:
where it is (an argument, or the path of a leaf), what was passed against what is needed, and what
to type instead. A case names these parts and not the sentence around them, so that the prose can be
improved without touching a test. Whole messages are in integration/test_bad_input.py.
"""

import contextlib
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from helpers import assert_says
from jaxprune._base.arguments import BadType, BadValue

ADAM = optax.adam(1e-3)
OPTAX_SCHEDULE = optax.linear_schedule(0.0, 0.5, 10)
HALF = jaxprune.one_shot_schedule(0.5)


class Tensor:
    """An array of a library that JAX does not know, as torch's tensors are."""

    shape = (2, 4)
    dtype = "torch.float32"


def case(name, call, kind, parts, marks=()):
    """A wrong call, and what its error must say.

    Args:
      name: of the test.
      call: a function without arguments that makes the mistake.
      kind: the type of the exception.
      parts: where the mistake is (the argument, or the path of the leaf and a colon); the
        offending value as the message shows it, and what it conflicts with; what to type instead,
        or what is needed where there are many ways. Each is a fragment of the message, a tuple of
        fragments; the first two may be None where the message has nothing short to say.
      marks: of pytest.
    """
    return pytest.param(call, kind, parts, id=name, marks=marks)


def error_of(call, kind):
    """The text of the error that `call` raises, which must read as plain sentences.

    The call runs in an empty folder, and must leave it empty.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with pytest.raises(kind) as caught:
            call()
        assert not os.listdir()
    assert caught.type in (kind, BadValue, BadType)
    text = str(caught.value)
    assert text.endswith((".", "?"))
    assert ".." not in text.replace("...", "")
    assert "  " not in text
    assert "\n" not in text
    assert "Tracer" not in text
    return text


def assert_error(call, kind, parts):
    """Checks that a call raises an error of a type, which says all parts of a case."""
    text = error_of(call, kind)
    for part in parts:
        assert_says(text, *((part,) if isinstance(part, str) else part or ()))


@functools.cache
def params():
    """A pruned leaf and two that are not."""
    kernel = jnp.arange(1, 9, dtype=jnp.float32).reshape(2, 4)
    return {"w": kernel, "b": jnp.ones((4,), jnp.float32), "n": jnp.arange(3, dtype=jnp.int32)}


@functools.cache
def start():
    """The state that `prune(HALF)` starts from."""
    return jaxprune.prune(HALF).init(params())


@functools.cache
def half_pruned():
    """Params and state after one update: the first row of `w` is dropped."""
    tx = jaxprune.prune(HALF)
    updates = jax.tree.map(jnp.zeros_like, params())
    updates, state = tx.update(updates, tx.init(params()), params())
    return optax.apply_updates(params(), updates), state


def init(tree, schedule=HALF, **rules):
    return jaxprune.prune(schedule, **rules).init(tree)


def update(updates=None, state=None, tree=None, **arguments):
    tree = params() if tree is None else tree
    updates = params() if updates is None else updates
    state = start() if state is None else state
    return jaxprune.prune(HALF, **arguments).update(updates, state, tree)


def cubic(final_sparsity=0.5, begin_step=0, end_step=10, every=2, **more):
    return jaxprune.cubic_schedule(final_sparsity, begin_step, end_step, every, **more)


def read_off(fn, begin=0, end=10, every=5):
    return jaxprune.from_optax_schedule(fn, begin, end, every)


def constant(value):
    return lambda step: value


def traced(function):
    """Calls a function on a traced 0.5."""
    return jax.make_jaxpr(function)(0.5)
