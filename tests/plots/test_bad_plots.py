"""Wrong input to the functions in `jaxprune.plots`."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import jaxprune
from bad_input import assert_error, case
from jaxprune import plots

METRICS = {"prune/step": 1, "prune/sparsity": 0.5, "prune/sparsity_all": 0.4, "prune/target": 0.9}
KERNEL = np.ones((2, 3), np.float32)
REPORT = jaxprune.summarize({"fc": KERNEL})
ON_AXES = {
    "schedule_curve": lambda ax: plots.schedule_curve(jaxprune.one_shot_schedule(0.5), ax),
    "sparsity_curve": lambda ax: plots.sparsity_curve([METRICS], ax),
    "leaf_bars": lambda ax: plots.leaf_bars(REPORT, ax),
    "weight_histogram": lambda ax: plots.weight_histogram({"a": KERNEL}, {"a": KERNEL}, ax),
    "mask_image": lambda ax: plots.mask_image(KERNEL != 0, ax),
    "sensitivity_map": lambda ax: plots.sensitivity_map(
        jaxprune.sensitivity(lambda p: jnp.sum(p["a"]), {"a": jnp.ones((2, 2))}, (0.5,)), ax
    ),
}


@pytest.mark.parametrize("name", ON_AXES)
@pytest.mark.parametrize(
    "ax, got, fix",
    (
        (pyplot, "the module matplotlib.pyplot", "figure.subplots()"),
        (Figure(), "type Figure", "figure.subplots()"),
        (Figure().subplots(1, 2), "type ndarray", "axes[0]"),
        ("ax", "type str", "leave ax out"),
    ),
    ids=("pyplot", "figure", "array", "text"),
)
def test_axes_that_are_none_are_refused(name, ax, got, fix):
    assert_error(lambda: ON_AXES[name](ax), TypeError, (f"{name}: ax", got, fix))


@pytest.mark.parametrize("name", ON_AXES)
def test_axes_are_drawn_on(name):
    ax = Figure().subplots()
    assert ON_AXES[name](ax) is ax


CASES = [
    case(
        "no_reports",
        lambda: plots.leaf_bars({}),
        ValueError,
        ("leaf_bars: report", "got none", "jaxprune.summarize(params)"),
    ),
    case(
        "report_without_leaves",
        lambda: plots.leaf_bars({"before": jaxprune.summarize({})}),
        ValueError,
        ("leaf_bars: report", "got none", "jaxprune.summarize(params)"),
    ),
    case(
        "schedule_is_a_number",
        lambda: plots.schedule_curve(0.9),
        TypeError,
        ("schedule_curve: schedule", "0.9", "cubic_schedule(0.9"),
    ),
    case(
        "history_is_one_entry",
        lambda: plots.sparsity_curve(METRICS),
        TypeError,
        ("sparsity_curve: history", "dict", "history.append"),
    ),
    case(
        "history_is_empty",
        lambda: plots.sparsity_curve([]),
        ValueError,
        ("sparsity_curve: history", "[]", "history.append"),
    ),
    case(
        "entry_is_a_number",
        lambda: plots.sparsity_curve([METRICS, 0.5]),
        TypeError,
        ("history[1]", "0.5", "history.append"),
    ),
    case(
        "entry_without_a_name",
        lambda: plots.sparsity_curve([METRICS, {"prune/step": 2}]),
        ValueError,
        ("history[1]", ("'prune/sparsity'", "['prune/step']"), "jaxprune.metrics"),
    ),
    case(
        "metrics_of_a_batched_state",
        lambda: plots.sparsity_curve([METRICS | {"prune/sparsity": jnp.zeros(3)}]),
        TypeError,
        ("history[0]['prune/sparsity']", "(3,)", "value[0]"),
    ),
    case(
        "metrics_of_a_batched_state_at_one_step",
        lambda: plots.sparsity_curve({name: np.full(3, x) for name, x in METRICS.items()}),
        ValueError,
        ("sparsity_curve", "all 3 entries of history are of step 1", "value[0]"),
    ),
    case(
        "stacked_metrics_of_a_batched_state",
        lambda: plots.sparsity_curve({name: np.full((4, 3), x) for name, x in METRICS.items()}),
        TypeError,
        ("sparsity_curve: history", "(4, 3)", "value[:, 0]"),
    ),
    case(
        "no_leaves_were_logged",
        lambda: plots.sparsity_curve([METRICS], per_leaf=True),
        ValueError,
        ("per_leaf", "history[0]", "per_leaf=True"),
    ),
    case(
        "report_is_a_tree",
        lambda: plots.leaf_bars({"fc": KERNEL}),
        TypeError,
        ("report['fc']", "array", "jaxprune.plan"),
    ),
    case(
        "report_is_a_number",
        lambda: plots.leaf_bars(0.5),
        TypeError,
        ("leaf_bars: report must", "0.5", "jaxprune.summarize"),
    ),
    case(
        "weights_are_a_number",
        lambda: plots.weight_histogram(0.5, KERNEL),
        ValueError,
        ("before", "0.5", "Pass params"),
    ),
    case(
        "weights_are_integers",
        lambda: plots.weight_histogram(KERNEL, np.arange(6)),
        ValueError,
        ("after", "float", "Pass params"),
    ),
    case(
        "weights_of_another_tree",
        lambda: plots.weight_histogram({"a": KERNEL, "b": KERNEL}, {"a": KERNEL}),
        ValueError,
        ("weight_histogram: b", ("6 weights", "no such leaf"), "the same model"),
    ),
    case(
        "weights_that_are_not_finite",
        lambda: plots.weight_histogram({"a": KERNEL}, {"a": KERNEL * np.nan}),
        ValueError,
        ("after: a", "6 of 6", "nan_to_num"),
    ),
    case(
        "bins_are_a_float",
        lambda: plots.weight_histogram(KERNEL, KERNEL, bins=10.0),
        TypeError,
        ("bins", "10.0", "bins=100"),
    ),
    case(
        "no_bins",
        lambda: plots.weight_histogram(KERNEL, KERNEL, bins=0),
        ValueError,
        ("bins", "0", "bins=100"),
    ),
    case(
        "mask_of_floats",
        lambda: plots.mask_image(KERNEL),
        TypeError,
        ("mask_image: mask", "float32 of shape (2, 3)", "weights != 0"),
    ),
    case(
        "mask_is_a_tree",
        lambda: plots.mask_image({"fc": KERNEL != 0}),
        TypeError,
        ("mask_image: mask", "dict", "get_masks"),
    ),
    case(
        "bit_mask",
        lambda: plots.mask_image(np.array([[255, 3]], np.uint8)),
        ValueError,
        ("mask_image: mask", ("3", "255"), "get_masks"),
    ),
    case(
        "mask_without_entries",
        lambda: plots.mask_image(np.ones((0, 3), bool)),
        ValueError,
        ("mask_image: mask", "(0, 3)", "jaxprune.get_masks"),
    ),
    case(
        "sensitivity_is_a_tree",
        lambda: plots.sensitivity_map({"a": 0.5}),
        TypeError,
        ("sensitivity_map: sensitivity", "{'a': 0.5}", "jaxprune.sensitivity"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", CASES)
def test_wrong_input_raises(call, kind, parts):
    assert_error(call, kind, parts)


def test_a_missing_matplotlib_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxprune\[plots\]'"):
        plots.schedule_curve(jaxprune.one_shot_schedule(0.5))
