"""The tracer: the worked example of its docstring, label by label."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._shrink.units import units_of
from jaxprune._trace.program import known_values, program_of, trace


def test_the_example_in_the_docstring_is_true():
    def mlp(params, x):
        w, b, v = params
        return jax.nn.relu(x @ w + b[None]) @ v

    params = [jnp.array([[3.0, 0.0]]), jnp.array([1.0, 0.0]), jnp.array([[5.0], [6.0]])]
    program = program_of(mlp, params, [jnp.ones((4, 1))])
    tracer = trace(program, known_values(program))
    assert [tracer.units.find(label) for label in range(6)] == [0, 1, 0, 1, 0, 1]
    (contraction,) = tracer.contractions  # x @ w sums over an axis of length 1, without labels
    np.testing.assert_array_equal(contraction.labels, [0, 1])
    np.testing.assert_array_equal(contraction.weight_labels, [4, 5])
    np.testing.assert_array_equal(contraction.zero, [False, True])
    first, second = units_of(tracer)
    assert (first.label, first.zero, second.label, second.zero) == (0, False, 1, True)
    assert second.members == ((0, 1, 1), (1, 0, 1), (2, 0, 1))
    assert first.is_candidate
    assert second.is_candidate
