"""Caches hold no traced values, wherever in an argument these are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from jaxprune._base.caching import bounded_cache, holds_tracer, jitted_unless_traced


@dataclasses.dataclass(eq=False)
class Scaled:
    """A score that is an object, or a method of one."""

    scale: object

    def __call__(self, params):
        return params * self.scale

    def score(self, params):
        return params * self.scale


def with_default(scale):
    def score(params, scale=scale):
        return params * scale

    return score


def with_keyword(scale):
    def score(params, *, scale=scale):
        return params * scale

    return score


def recursive(scale):
    def score(params, depth=2):
        return score(params, depth - 1) if depth else params * scale

    return score


def in_a_list_that_contains_itself(scale):
    items = [scale]
    items.append(items)
    return lambda params: params * items[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(slots=True)
class Slots:
    """A pytree without a `__dict__`."""

    scale: object


HOLDERS = {
    "cycle": in_a_list_that_contains_itself,
    "keys_of_two_types": lambda scale: lambda params, d={1: 2, None: scale}: params * d[None],
    "slots": lambda scale: lambda params, slots=Slots(scale): params * slots.scale,
    "closure": lambda scale: lambda params: params * scale,
    "nested": lambda scale: lambda params: (lambda x: x * scale)(params),
    "tree": lambda scale: lambda params, tree={"a": [1, (scale,)]}: params * tree["a"][1][0],
    "default": with_default,
    "keyword": with_keyword,
    "recursive": recursive,
    "object": Scaled,
    "method": lambda scale: Scaled(scale).score,
    "partial": lambda scale: functools.partial(lambda scale, params: params * scale, scale),
    "jitted": lambda scale: jax.jit(lambda params: params * scale),
}
holders = pytest.mark.parametrize("make", HOLDERS.values(), ids=HOLDERS)


@holders
def test_a_traced_value_is_seen_in_whatever_holds_it(make):
    assert not holds_tracer(make(2.0))
    assert not holds_tracer(make(jnp.ones(3)))
    seen = []
    jax.eval_shape(lambda scale: seen.append(holds_tracer({"x": [make(scale), 1]})), 2.0)
    assert seen == [True]


@holders
def test_a_cache_computes_anew_for_what_holds_a_traced_value(make):
    calls = []

    @bounded_cache(maxsize=4)
    def result(score, about):
        calls.append(about)
        return about

    score = make(2.0)
    assert [result(score, "a"), result(score, "b"), result(score, "a")] == ["a", "b", "a"]
    assert len(calls) == 2
    assert result.cache_info().currsize == 2

    def traced(scale):
        score = make(scale)
        assert [result(score, "a"), result(score, about="a")] == ["a", "a"]
        return scale

    with jax.checking_leaks():
        jax.eval_shape(traced, 2.0)
    assert len(calls) == 4
    assert result.cache_info().currsize == 2
    result.cache_clear()
    assert result.cache_info().currsize == 0


def test_a_variable_without_a_value_holds_nothing():
    def score(params):
        return params * later

    assert not holds_tracer(score)
    later = 2.0
    assert score(3.0) == 6.0


def test_what_is_called_instead_of_a_jitted_function():
    plain = lambda x: x + 1
    jitted = jax.jit(plain)
    assert jitted_unless_traced(jitted, 1.0, [jnp.ones(2)]) is jitted
    chosen = []
    jax.eval_shape(lambda x: chosen.append(jitted_unless_traced(jitted, 1.0, [x])), 2.0)
    assert chosen == [plain]
