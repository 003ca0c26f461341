"""Errors keep their suggestions as data, and one function decides what an integer is."""

import copy
import pickle
import traceback
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune._base.arguments import BadArgument, BadType, BadValue, as_int, as_seed, is_int


def in_options(argument, value):
    """As the command line writes an argument."""
    return f"--{argument} {value!r}"


def test_a_suggestion_is_written_in_the_notation_that_is_asked_for():
    fix = "Use {exclude}, {overrides}, {structure} or {final_sparsity}."
    arguments = {"exclude": "a{0}b", "overrides": {"w": Fraction(1, 2)}, "final_sparsity": 0.25}
    error = BadValue("{w}: bad.", fix, structure={"w": ...}, **arguments)
    assert str(error) == (
        "{w}: bad. Use exclude='a{0}b', overrides={'w': 0.5}, structure={'w': ...} or a final "
        "sparsity of 0.25."
    )
    assert error.told(in_options).startswith("{w}: bad. Use --exclude 'a{0}b', --overrides {'w'")
    assert error.told(in_options).endswith("or --final_sparsity 0.25.")


def test_an_error_without_a_suggestion_is_the_problem_alone():
    assert str(BadType("{x} must be a tree.")) == "{x} must be a tree."


@pytest.mark.parametrize("kind, base", ((BadValue, ValueError), (BadType, TypeError)))
@pytest.mark.parametrize("through", (copy.copy, lambda x: pickle.loads(pickle.dumps(x))))
def test_copies_of_an_error_hold_its_suggestion(kind, base, through):
    error = through(kind("w: bad.", "Use {exclude}.", exclude="w"))
    assert isinstance(error, base)
    assert isinstance(error, BadArgument)
    assert str(error) == "w: bad. Use exclude='w'."
    assert error.told(in_options) == "w: bad. Use --exclude 'w'."


def test_copies_of_an_error_keep_its_notes():
    error = BadValue("w: bad.")
    error.add_note("In layer 3.")
    assert copy.copy(error).__notes__ == ["In layer 3."]


@pytest.mark.parametrize("kind, base", ((BadValue, ValueError), (BadType, TypeError)))
def test_a_traceback_shows_the_name_of_the_error_that_users_catch(kind, base):
    lines = traceback.format_exception_only(kind("w: bad."))
    assert (
        lines == traceback.format_exception_only(base("w: bad.")) == [f"{base.__name__}: w: bad.\n"]
    )


@pytest.mark.parametrize("value", (3, np.int8(3), np.uint64(3)))
def test_integers_of_python_and_numpy_become_python_ints(value):
    assert is_int(value)
    assert type(as_int("n", value)) is int


@pytest.mark.parametrize("value", (True, np.True_, 3.0, "3", None, jnp.int32(3), np.array([3])))
def test_what_is_not_an_integer_is_named(value):
    assert not is_int(value)
    with pytest.raises(TypeError, match=r"^n must be an int, got .*(3|True|None)"):
        as_int("n", value)


def test_an_integer_that_is_too_small_is_named():
    assert as_int("n", 1, least=1) == 1
    with pytest.raises(ValueError, match=r"^n must be at least 1, got 0[.]"):
        as_int("n", 0, least=1)


def test_a_traced_integer_is_told_from_a_python_one():
    with pytest.raises(TypeError, match=r"n must be an int, got a traced value.*Python int"):
        jax.make_jaxpr(lambda n: as_int("n", n))(3)


def test_a_seed_has_32_bits():
    assert as_seed("seed", 2**32 - 1) == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=r"seed must be in \[0, 2\*\*32\), got"):
            as_seed("seed", seed)
