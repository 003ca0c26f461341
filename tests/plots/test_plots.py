"""Pictures: their marks, labels and colours are those of the data that they show."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.colors
import numpy as np
import optax
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

import jaxprune
from helpers import ones, random_params
from jaxprune import Sensitivity, plots

matplotlib.use("Agg")
LOSSES = np.array([[1.0, 3.0, np.nan], [0.5, 1.0, 2.0]])
TABLE = Sensitivity(
    ("conv", "fc/kernel"), (0.5, 0.75, 0.9), LOSSES, 1.0, np.array([8, 8]), np.ones((2, 3), int)
)
SCHEDULE = jaxprune.cubic_schedule(0.9, 3, 10, every=3)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


@functools.cache
def make_params():
    """Two leaves that are pruned and two that are not."""
    return random_params({"wide": (40, 20), "small": (6, 4), "bias": (20,), "scale": ()})


def curve(ax, label):
    [line] = [line for line in ax.lines if line.get_label() == label]
    return line


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@functools.cache
def run():
    """Metrics of a short run, and the masks at its end."""
    tx = jaxprune.prune(SCHEDULE, distribution=jaxprune.erk)
    update, state, history = jax.jit(tx.update), tx.init(make_params()), []
    for _ in range(13):
        _, state = update(make_params(), state, make_params())
        history.append(jaxprune.metrics(state, per_leaf=True))
    return history, jaxprune.get_masks(state)


CALLS = {
    "leaf_bars": lambda ax=None: plots.leaf_bars(jaxprune.plan(make_params(), 0.5), ax),
    "mask_image": lambda ax=None: plots.mask_image(np.eye(3, dtype=bool), ax),
    "schedule_curve": lambda ax=None: plots.schedule_curve(SCHEDULE, ax),
    "sensitivity_map": lambda ax=None: plots.sensitivity_map(TABLE, ax),
    "sparsity_curve": lambda ax=None: plots.sparsity_curve(run()[0], ax),
    "weight_histogram": lambda ax=None: plots.weight_histogram(np.eye(3), np.eye(3), ax),
}


def test_every_picture_has_a_case():
    assert sorted(CALLS) == sorted(plots.__all__) == plots.__all__


@pytest.mark.parametrize("name", CALLS)
def test_given_axes_are_used_and_new_ones_are_labelled(name):
    own = Figure().subplots()
    assert CALLS[name](own) is own
    ax = CALLS[name]()
    ax.figure.canvas.draw()
    assert ax.get_xlabel()
    assert ax.get_ylabel() or ax.get_yticklabels()


@pytest.mark.parametrize("name", CALLS)
def test_the_style_of_the_user_is_kept(name):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"figure.facecolor": "black", "axes.labelcolor": "white"}):
        ax = CALLS[name]()
        assert matplotlib.colors.to_rgb(ax.figure.get_facecolor()) == (0, 0, 0)
        assert matplotlib.colors.to_rgb(ax.xaxis.label.get_color()) == (1, 1, 1)
    assert dict(matplotlib.rcParams) == before


def luminance(colour):
    """Relative luminance, as in WCAG 2."""
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in colour]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_the_first_colours_are_seen_on_white_and_on_black():
    for colour in plots._COLOURS[:4]:
        value = luminance(matplotlib.colors.to_rgb(colour))
        assert 1.05 / (value + 0.05) >= 2.9
        assert (value + 0.05) / 0.05 >= 2.9


# schedule_curve


def test_a_schedule_has_a_dot_at_each_fire_and_its_values_between():
    ax = plots.schedule_curve(SCHEDULE)
    [line] = ax.lines
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-post"
    assert [int(x[i]) for i in line.get_markevery()] == [3, 6, 9, 10]
    for step in range(12):
        drawn = y[np.searchsorted(x, step, side="right") - 1]
        assert drawn == SCHEDULE.sparsity(step), step
    assert ax.get_legend() is None


def test_schedules_on_the_same_axes_differ_in_colour_and_dashes():
    ax = None
    for label in ("a", "b", "c"):
        ax = plots.schedule_curve(SCHEDULE, ax, label=label)
    assert legend(ax) == ["a", "b", "c"]
    assert len({line.get_color() for line in ax.lines}) == 3
    assert len({line.get_linestyle() for line in ax.lines}) == 3


# sparsity_curve


def test_a_run_is_drawn_as_it_was_logged_in_the_order_of_its_steps():
    history, _ = run()
    ax = plots.sparsity_curve([*history[6:], *history[:6]])
    for label, name in {"pruned leaves": "sparsity", "all leaves": "sparsity_all"}.items():
        x, y = curve(ax, label).get_data()
        assert x.tolist() == list(range(1, 14))
        assert y.tolist() == [float(entry[f"prune/{name}"]) for entry in history]
    assert curve(ax, "target").get_ydata()[0] == float(history[-1]["prune/target"])
    assert legend(ax) == ["target", "pruned leaves", "all leaves"]


def test_metrics_that_scan_has_stacked_are_drawn_as_a_list_of_them():
    history, _ = run()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *history)
    axes = [plots.sparsity_curve(logs, per_leaf=True) for logs in (history, stacked)]
    for line, other in zip(axes[0].lines, axes[1].lines, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())


def test_each_leaf_has_a_line_if_asked_for():
    history, _ = run()
    ax = plots.sparsity_curve(history, per_leaf=True)
    for path in ("small", "wide"):
        values = [float(entry[f"prune/sparsity/{path}"]) for entry in history]
        assert curve(ax, f"_{path}").get_ydata().tolist() == values
    assert len(ax.lines) == 5
    assert len(legend(ax)) == 3


# leaf_bars


def bar_widths(container):
    return [bar.get_width() for bar in container]


def test_a_bar_is_the_sparsity_of_its_leaf():
    report = jaxprune.plan(make_params(), 0.8, overrides={"small": 0.5})
    ax = plots.leaf_bars(report)
    sparsities = {leaf.path: leaf.sparsity for leaf in report.leaves}
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["small", "wide"]
    [bars] = ax.containers
    assert bar_widths(bars) == [sparsities[path] for path in labels]
    assert ax.get_legend() is None
    assert ax.yaxis_inverted()


def test_reports_are_side_by_side_and_a_shared_pool_is_hatched():
    kinds = {"uniform": jaxprune.uniform, "pool": jaxprune.global_pool}
    reports = {name: jaxprune.plan(make_params(), 0.8, distribution=d) for name, d in kinds.items()}
    ax = plots.leaf_bars(reports)
    assert legend(ax) == ["uniform", "pool: average of the pool"]
    uniform, pool = ax.containers
    assert bar_widths(pool) == [reports["pool"].pools[0].n_zero / 824] * 2
    assert all(bar.get_hatch() for bar in pool)
    assert not any(bar.get_hatch() for bar in uniform)
    ends = [(bar.get_y(), bar.get_y() + bar.get_height()) for bars in ax.containers for bar in bars]
    for (_, end), (start, _) in zip(sorted(ends), sorted(ends)[1:], strict=False):
        assert end <= start + 1e-9


def test_a_leaf_whose_share_is_not_known_has_a_question_mark():
    params = random_params({"a": (4, 5), "b": (6, 5), "c": (8, 5), "bias": (5,)})
    pools = [
        jaxprune.prune(
            jaxprune.one_shot_schedule(0.5), include=paths, distribution=jaxprune.global_pool
        )
        for paths in (("a", "b"), ("b", "c"))
    ]
    ax = plots.leaf_bars(jaxprune.plan(params, optax.chain(*pools)))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    [bars] = ax.containers
    assert bar_widths(bars) == [0.5, 0.5]
    [text] = ax.texts
    assert (text.get_text(), text.get_position()[1]) == ("?", 0)
    assert legend(ax) == ["average of the pool"]


def test_a_report_without_zeros_shows_all_leaves():
    ax = plots.leaf_bars(jaxprune.summarize({"a": ones(2), "b": ones(3)}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert bar_widths(ax.containers[0]) == [0, 0]


# weight_histogram


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.bfloat16))
def test_the_bars_of_a_histogram_count_all_nonzero_weights(dtype):
    dense = jax.tree.map(lambda x: x.astype(dtype), make_params()) | {"n": jnp.arange(3)}
    sparse, _ = jaxprune.prune_params(dense, 0.9)
    ax = plots.weight_histogram(dense, sparse, bins=17)
    n = 40 * 20 + 6 * 4 + 20 + 1
    n_zero = jaxprune.summarize(sparse).n_zero - 1  # and the 0 in `n`, which is left out
    for patch, count in zip(ax.patches, (n, n - n_zero), strict=True):
        values, edges, _ = patch.get_data()
        assert (values.size, values.sum()) == (17, count)
    assert np.array_equal(edges, ax.patches[0].get_data().edges)
    assert legend(ax) == [
        f"before: {n:,} nonzero, 0 zeros",
        f"after: {n - n_zero:,} nonzero, {n_zero:,} zeros",
    ]


def test_a_histogram_of_one_value_or_of_zeros_alone():
    ax = plots.weight_histogram(ones(4), jnp.zeros(4))
    assert [patch.get_data().values.sum() for patch in ax.patches] == [4, 0]


# mask_image


@pytest.mark.parametrize("dtype", (bool, np.uint8, jnp.int32))
def test_a_pixel_is_a_weight_and_blue_where_it_is_kept(dtype):
    mask = jnp.asarray([[1, 0, 0], [0, 1, 0]], dtype)
    ax = plots.mask_image(mask)
    [image] = ax.images
    assert np.array_equal(image.get_array(), np.asarray(mask) != 0)
    colours = image.cmap(image.norm(image.get_array()))
    kept = matplotlib.colors.to_rgb(plots._COLOURS[0])
    assert np.array_equal((colours[..., :3] == kept).all(-1), np.asarray(mask) != 0)
    assert ax.get_title() == "2 of 6 weights kept, 66.67% zeros"


def test_other_axes_of_a_mask_go_from_top_to_bottom():
    mask = np.arange(24).reshape(2, 3, 4) % 5 == 0
    [image] = plots.mask_image(mask).images
    assert np.array_equal(image.get_array(), mask.reshape(6, 4))
    assert plots.mask_image(mask).get_ylabel() == "other axes (2 x 3)"
    assert plots.mask_image(np.ones(5, bool)).images[0].get_array().shape == (1, 5)
    assert plots.mask_image(np.ones((), bool)).images[0].get_array().shape == (1, 1)


# sensitivity_map


@pytest.mark.parametrize("grouped, row", ((False, "leaf"), (True, "group")))
def test_the_map_says_what_a_row_is(grouped, row):
    ax = plots.sensitivity_map(dataclasses.replace(TABLE, grouped=grouped))
    assert ax.get_title() == f"Loss with one {row} pruned"
    assert ax.get_xlabel() == f"sparsity of the {row}"


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
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "0.75", "0.9"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv", "fc/kernel"]
    assert ax.get_xlabel() == "sparsity of the leaf"


def test_a_table_of_equal_losses():
    equal = Sensitivity(("a",), (0.5,), np.ones((1, 1)), 1.0, np.array([8]), np.array([[4]]))
    [image] = plots.sensitivity_map(equal).images
    assert image.get_clim() == (-1.0, 1.0)
