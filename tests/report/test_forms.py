"""Every report as text of 80 columns, as HTML and as a dictionary: they say the same."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from helpers import ones, random_params

SPARSITIES = [k / 20 for k in range(1, 15)]
LONG = "encoder/layers_10/self_attention/<query>/kernel"


@functools.cache
def make_params():
    """A leaf with a long name that is pruned, another, and two that are not pruned."""
    return random_params({LONG: (64, 32), "fc": (8, 4), "bias": (4,), "scale": ()})


def positive(weights):
    return weights > 0


def loss(params):
    return jnp.sum(params[LONG] ** 2) + jnp.sum(params["fc"]) ** 2


def mlp(params, x):
    return jnp.tanh(jnp.maximum(x @ params["up"], 0) @ params["down"])


@functools.cache
def shrunk():
    params = {"up": ones(3, 8).at[:, ::2].set(0), "down": ones(8, 2)}
    groups = jaxprune.channel_groups(mlp, params, ones(1, 3))
    return groups, jaxprune.shrink(mlp, params, ones(1, 3))[1]


REPORTS = {
    "plan": lambda: jaxprune.plan(make_params(), 0.9, overrides={LONG: 0.5}),
    "plan_of_a_pool": lambda: jaxprune.plan(
        make_params(), 0.9, distribution=jaxprune.global_pool, exclude=lambda path, spec: False
    ),
    "summary": lambda: jaxprune.summarize(
        make_params(), {k: x > 0 for k, x in make_params().items()}
    ),
    "sensitivity": lambda: jaxprune.sensitivity(
        loss, make_params(), [k / 20 for k in range(1, 15)]
    ),
    "roles": lambda: jaxprune.AxisRoles(
        {LONG: ("in", "out")}, {"bias": "it is in no product"}, {LONG: (64, 32), "bias": (4,)}
    ),
    "groups": lambda: shrunk()[0],
    "shrink": lambda: shrunk()[1],
}
report_of = functools.cache(lambda name: REPORTS[name]())


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_prints_in_80_columns(name):
    lines = str(report_of(name)).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", REPORTS)
def test_a_dictionary_is_strict_json_and_survives_it(name):
    content = report_of(name).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@pytest.mark.parametrize("name", REPORTS)
def test_html_is_escaped_and_has_the_words_of_the_text(name):
    report = report_of(name)
    page = report._repr_html_()
    assert "<query>" not in page
    assert page.count("<table>") == page.count("</table>") == 1
    text = "".join(str(report).split())
    if LONG in text:
        assert "&lt;query&gt;" in page


@pytest.mark.parametrize("name", ("plan", "plan_of_a_pool", "summary"))
def test_the_rows_of_a_dictionary_are_those_that_are_printed(name):
    report = report_of(name)
    content = report.to_dict()
    assert [row["path"] for row in content["leaves"]] == [leaf.path for leaf in report.leaves]
    printed = [line.split() for line in str(report).splitlines()]
    for row in [*content["leaves"], content]:
        cells = [f"{row['weights']:,}", "?", "?"]
        if row["nonzero"] is not None:
            cells[1:] = f"{row['nonzero']:,}", f"{row['sparsity']:.2%}"
            assert row["sparsity"] == (row["weights"] - row["nonzero"]) / row["weights"]
        assert any(line[i : i + 3] == cells for line in printed for i in range(len(line))), row
    assert content["title"] == report.title
    assert content["notes"] == list(report.notes)


def test_the_pools_of_a_dictionary_add_up_to_the_total():
    content = report_of("plan_of_a_pool").to_dict()
    [pool] = content["pools"]
    known = [row["nonzero"] for row in content["leaves"] if row["nonzero"] is not None]
    assert pool["paths"] == [row["path"] for row in content["leaves"] if row["nonzero"] is None]
    assert pool["nonzero"] + sum(known) == content["nonzero"]


def test_a_dictionary_of_sensitivity_has_a_row_for_each_loss():
    table = report_of("sensitivity")
    rows = table.to_dict()["rows"]
    losses = {(row["rule"], row["sparsity"]): row["loss"] for row in rows}
    assert len(losses) == len(rows) == table.losses.size
    for i, rule in enumerate(table.rules):
        for k, sparsity in enumerate(table.sparsities):
            assert losses[rule, sparsity] == table.losses[i, k]
    assert all(f"{loss:.4g}" in repr(table) for loss in losses.values())


def test_a_loss_that_is_not_finite_is_none():
    losses = np.array([[np.nan, np.inf]])
    table = jaxprune.Sensitivity(
        ("a",), (0.5, 0.9), losses, 1.0, np.array([8]), np.ones((1, 2), int)
    )
    assert [row["loss"] for row in table.to_dict()["rows"]] == [None, None]


def test_a_dictionary_of_shrink_has_the_numbers_of_its_layers():
    report = report_of("shrink")
    content = report.to_dict()
    assert (
        sum(layer["numbers_before"] for layer in content["layers"]) == content["size_before"] == 40
    )
    assert sum(layer["numbers"] for layer in content["layers"]) == content["size"] == 20
    assert content["shapes"] == {"down": [[8, 2], [4, 2]], "up": [[3, 8], [3, 4]]}
    sizes = [(group["size"], group["kept"]) for group in content["groups"]]
    assert sizes == [(group.size, group.kept) for group in report.groups]
    assert all(f"{size} -> {kept}" in str(report) for size, kept in sizes)
    no_number = jaxprune.ShrinkReport((), {}, 4, 4, math.nan)
    assert no_number.to_dict()["difference"] is None


@pytest.mark.parametrize("name", ("plan", "sensitivity", "roles", "shrink"))
def test_rows_have_the_same_keys_and_make_a_data_frame(name):
    content = report_of(name).to_dict()
    rows = content.get("leaves") or content.get("rows") or content["layers"]
    assert len({tuple(row) for row in rows}) == 1
    pandas = pytest.importorskip("pandas")
    assert pandas.DataFrame(rows).shape == (len(rows), len(rows[0]))


@pytest.mark.parametrize("name", ("plan", "sensitivity", "roles", "shrink"))
def test_a_prompt_shows_the_table(name):
    assert repr(report_of(name)) == str(report_of(name))
