"""Pictures: their marks, labels and colours are those of the table that they show."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from bad_input import assert_error
from jaxprune import Sensitivity, plots

matplotlib.use("Agg")
LOSSES = np.array([[1.0, 3.0, np.nan], [0.5, 1.0, 2.0]])
TABLE = Sensitivity(
    ("conv", "fc/kernel"), (0.5, 0.75, 0.9), LOSSES, 1.0, np.array([8, 8]), np.ones((2, 3), int)
)


def test_a_cell_has_the_colour_of_its_loss():
    ax = plots.sensitivity_map(TABLE)
    ax.figure.canvas.draw()
    [image] = ax.images
    cells = image.get_array()
    assert np.array_equal(cells.mask, np.isnan(LOSSES))
    assert np.array_equal(cells.compressed(), (LOSSES - 1)[~np.isnan(LOSSES)])
    assert image.get_clim() == (-2.0, 2.0)  # white is no change
    colour = image.cmap(image.norm(cells))
    assert colour[0, 0, :3] == pytest.approx(colour[1, 1, :3])
    assert colour[0, 1, 0] > colour[0, 1, 2]  # worse is red
    assert colour[1, 0, 2] > colour[1, 0, 0]  # better is blue


def test_axes_are_labelled_and_given_axes_are_used():
    own = Figure().subplots()
    ax = plots.sensitivity_map(TABLE, own)
    assert ax is own
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.75", "0.9"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "fc/kernel"]
    assert ax.get_xlabel() == "sparsity of the leaf"


def test_a_table_of_equal_losses():
    equal = Sensitivity(("a",), (0.5,), np.ones((1, 1)), 1.0, np.array([8]), np.array([[4]]))
    [image] = plots.sensitivity_map(equal).images
    assert image.get_clim() == (-1.0, 1.0)


def test_something_else_is_refused():
    assert_error(
        lambda: plots.sensitivity_map({"a": 0.5}),
        TypeError,
        ("sensitivity_map: sensitivity", "{'a': 0.5}", "jaxprune.sensitivity"),
    )
