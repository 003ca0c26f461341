"""Known values of elementwise results: zeros, unknown values, and values that are not finite."""

import numpy as np
import pytest

from jaxprune._trace.constant_folding import ELEMENTWISE, fold

UNKNOWN, INFINITE = np.nan, np.inf


@pytest.mark.parametrize(
    "name, operands, expected",
    (
        ("mul", (0.0, UNKNOWN), 0.0),
        ("mul", (0.0, INFINITE), INFINITE),  # 0 * nan is nan
        ("mul", (0.0, -np.inf), 0.0),  # a mask, which is unknown
        ("div", (0.0, UNKNOWN), 0.0),
        ("div", (0.0, 0.0), INFINITE),
        ("div", (1.0, 0.0), INFINITE),
        ("div", (UNKNOWN, 0.0), INFINITE),
        ("div", (0.0, INFINITE), INFINITE),
        ("add", (0.0, UNKNOWN), UNKNOWN),
        ("add", (UNKNOWN, INFINITE), INFINITE),
        ("log", (0.0,), INFINITE),
        ("rsqrt", (0.0,), INFINITE),
        ("exp", (INFINITE,), INFINITE),
        ("max", (INFINITE, 0.0), INFINITE),
        ("eq", (0.0, 0.0), 1.0),
        ("eq", (INFINITE, 0.0), UNKNOWN),
        ("select_n", (1.0, INFINITE, 3.0), 3.0),  # the safe form of a division
        ("select_n", (0.0, INFINITE, 3.0), INFINITE),
        ("select_n", (UNKNOWN, INFINITE, 3.0), UNKNOWN),
        ("select_n", (UNKNOWN, 3.0, 3.0), 3.0),
    ),
)
def test_the_known_value_of_a_result(name, operands, expected):
    function = ELEMENTWISE[name]
    assert function is not None
    value = fold(function, name, [np.array([x]) for x in operands])
    np.testing.assert_array_equal(value, [expected])
