"""Roles of axes: what users may pass, how leaves find theirs, layouts of other libraries."""

import copy
import pickle
import re

import equinox as eqx
import jax
import pytest
from hypothesis import given, strategies as st

import jaxprune
from bad_input import assert_error, case
from jaxprune import AxisRoles, equinox_roles, torch_roles
from jaxprune._base.paths import paths_of
from jaxprune._recipe.role_words import ROLES
from jaxprune._recipe.roles import as_roles

ROLE_TUPLES = st.lists(st.sampled_from(ROLES), min_size=1, max_size=4).map(tuple)
PATHS = st.from_regex(r"[a-c]{1,2}(/[a-c]{1,2}){0,2}", fullmatch=True)


def shape_for(roles):
    return tuple(range(2, 2 + len(roles)))


# Finding the roles of a leaf


@given(st.dictionaries(PATHS, ROLE_TUPLES, min_size=1))
def test_every_leaf_finds_the_roles_that_were_read_for_its_path(given_roles):
    rules = as_roles(AxisRoles(given_roles))
    for path, roles in given_roles.items():
        assert rules.of(path, shape_for(roles)) == roles
    assert rules.of("another/path", (2, 3)) is None


@given(st.dictionaries(PATHS, ROLE_TUPLES, min_size=1), st.booleans())
def test_the_collection_of_linen_variables_makes_no_difference(given_roles, roles_have_it):
    with_collection = {f"params/{path}": roles for path, roles in given_roles.items()}
    rules = as_roles(AxisRoles(with_collection if roles_have_it else given_roles))
    for path, roles in (given_roles if roles_have_it else with_collection).items():
        assert rules.of(path, shape_for(roles)) == roles


@given(st.lists(st.tuples(st.sampled_from(("a.*", ".*b", "a/b", ".*")), ROLE_TUPLES), min_size=1))
def test_the_first_rule_that_fits_path_and_number_of_axes_decides(pairs):
    given_roles = dict(pairs)
    rules = as_roles(given_roles)
    for path in ("a/b", "b", "a", "c"):
        for n_axes in range(1, 5):
            fitting = [
                roles
                for rule, roles in given_roles.items()
                if re.fullmatch(rule, path) and len(roles) == n_axes
            ]
            assert rules.of(path, (2,) * n_axes) == (fitting[0] if fitting else None)


def test_a_rule_may_have_roles_for_several_numbers_of_axes():
    rules = as_roles(
        {".*w": [("out", "in"), ["out", "in", "window"]], ".*": ("stack", "in", "out")}
    )
    assert rules.of("a/w", (2, 3)) == ("out", "in")
    assert rules.of("a/w", (2, 3, 4)) == ("out", "in", "window")
    assert rules.of("a/v", (2, 3, 4)) == ("stack", "in", "out")
    assert rules.of("a/w", (2,)) is None


def test_axis_roles_say_why_a_leaf_has_none():
    roles = AxisRoles({"params/w": ("in", "out")}, {"params/b": "in no product"})
    assert as_roles(roles).reason("b") == "in no product"
    assert as_roles(roles).reason("w") == ""
    assert as_roles({".*": ("in", "out")}).reason("b") == ""


def test_axis_roles_of_another_model_are_refused():
    rules = as_roles(AxisRoles({"params/w": ("in", "out")}))
    assert_error(
        lambda: rules.of("w", (2, 3, 4)),
        ValueError,
        ("w: ", ("2 axes", "(2, 3, 4)"), "Call axis_roles again"),
    )


def test_roles_that_were_read_may_be_overridden_by_a_dict():
    roles = AxisRoles({"params/a/w": ("in", "out"), "params/e": ("in", "out")})
    rules = as_roles({**roles, "e": ("out", "in"), ".*v": ("stack", "in", "out")})
    assert rules.of("a/w", (2, 3)) == ("in", "out")
    assert as_roles({"e": ("out", "in"), **roles}).of("e", (2, 3)) == ("out", "in")
    assert rules.of("x/v", (2, 3, 4)) == ("stack", "in", "out")


def test_roles_are_values():
    first = AxisRoles({"w": ["in", "out"]}, {"b": "in no product"}, {"w": (2, 3), "b": (3,)})
    same = AxisRoles({"w": ("in", "out")})
    other = AxisRoles({"w": ("out", "in")})
    assert first == same == {"w": ("in", "out")} != other
    assert hash(first) == hash(same)
    assert as_roles(same) == as_roles(AxisRoles(same)) != as_roles(other)
    assert hash(as_roles(same)) == hash(as_roles(AxisRoles(same)))
    assert as_roles(as_roles(same)) == as_roles(same)
    assert as_roles(None) is None
    for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert copied == first
        assert str(copied) == str(first)
        assert copied.without == first.without
        assert copied.shapes == first.shapes


def test_axis_roles_can_not_be_changed():
    roles = AxisRoles({"w": ("in", "out")}, {"b": "in no product"})
    with pytest.raises(TypeError):
        roles["w"] = ("out", "in")
    roles.without["b"] = "changed"
    roles.shapes["w"] = (1, 2)
    assert roles.without == {"b": "in no product"}
    assert roles.shapes == {}


def test_the_table_lists_the_leaves_in_the_order_of_the_tree():
    shapes = {"a": (3,), "b": (2, 3), "": (4, 5)}
    table = str(AxisRoles({"": ("out", "in"), "b": ("in", "out")}, {"a": "in no product"}, shapes))
    assert table.splitlines() == [
        "leaf    shape  roles    note",
        "a       3               in no product",
        "b       2x3    in, out",
        "(root)  4x5    out, in",
    ]
    assert str(AxisRoles({})) == "leaf  shape  roles  note"


# Rules that match nothing


def test_only_rules_of_the_user_must_match():
    rules = as_roles({".*w": ("in", "out"), "x": ("in", "out"), **torch_roles})
    assert rules.unmatched(["a/w"]) == ["x"]
    assert rules.unmatched(["params/x", "w"]) == []
    assert rules.knows(["a/weight"])
    assert not as_roles(torch_roles).knows(["a/kernel"])
    assert not as_roles(AxisRoles({"w": ("in", "out")})).knows(["v"])
    assert as_roles(AxisRoles({"w": ("in", "out")})).knows(["v", "params/w"])


# Layouts


def test_torch_layouts():
    rules = as_roles(torch_roles)
    assert rules.of("fc.weight", (8, 4)) == ("out", "in")
    assert rules.of("weight", (8, 4)) == ("out", "in")
    assert rules.of("features.0.weight", (8, 4, 3, 3)) == ("out", "in", "window", "window")
    assert rules.of("attn/in_proj_weight", (24, 8)) == ("out", "in")
    assert rules.of("lstm.weight_hh_l0_reverse", (32, 8)) == ("out", "in")
    for path in ("deconv1.weight", "decoder.conv_transpose.weight", "ConvTranspose2d/0/weight"):
        assert rules.of(path, (8, 4, 3, 3)) == ("in", "out", "window", "window")
        assert rules.of(path, (8, 4)) == ("out", "in")
    assert rules.of("deconv/norm/weight", (8, 4, 3)) == ("out", "in", "window")
    for path, shape in (("bn.weight", (8,)), ("fc.bias", (8, 4)), ("fc.overweight", (8, 4))):
        assert rules.of(path, shape) is None


def test_equinox_layouts():
    key = jax.random.key(0)
    layers = {
        "linear": (eqx.nn.Linear(4, 8, key=key), ("out", "in")),
        "conv1": (eqx.nn.Conv1d(4, 8, 3, key=key), ("out", "in", "window")),
        "any2": (eqx.nn.Conv2d(4, 8, 3, key=key), ("out", "in", "window", "window")),
        "norm": (eqx.nn.LayerNorm(4), None),
    }
    rules = as_roles(equinox_roles)
    for name, (layer, roles) in layers.items():
        assert rules.of(f"{name}/weight", layer.weight.shape) == roles
    cell = eqx.nn.LSTMCell(4, 8, key=key)
    assert [path for path in paths_of(cell) if rules.of(path, (32, 8))] == [
        "weight_ih",
        "weight_hh",
    ]
    stacked = eqx.filter_vmap(lambda k: eqx.nn.Linear(4, 8, key=k))(jax.random.split(key, 2))
    assert rules.of("blocks/0/weight", stacked.weight.shape) is None


# Wrong input

READ = AxisRoles({"w": ("in", "out")})
BAD_ROLES = [
    case(
        "unknown_word",
        lambda: as_roles({".*w": ("imput", "out")}),
        ValueError,
        ("roles['.*w']", "'imput'", ('"window"', 'Did you mean "in"?')),
    ),
    case(
        "other_word",
        lambda: as_roles({".*w": ("input", "Output")}),
        ValueError,
        ("roles['.*w']", "'input'", 'Did you mean "in"?'),
    ),
    case(
        "words_of_scans",
        lambda: as_roles({".*w": ("layer", "in", "out")}),
        ValueError,
        ("roles['.*w']", "'layer'", 'Did you mean "stack"?'),
    ),
    case(
        "no_word_alike",
        lambda: as_roles({".*w": ("q", "out")}),
        ValueError,
        ("roles['.*w']", "'q'", '"in", "window", "out" or "stack"'),
    ),
    case(
        "number_for_a_role",
        lambda: as_roles({".*w": (0, 1)}),
        TypeError,
        ("roles['.*w']", "got 0", '("in", "out")'),
    ),
    case(
        "string_for_a_tuple",
        lambda: as_roles({"w": "in"}),
        TypeError,
        ("roles['w']", "got 'in'", "('in',)"),
    ),
    case(
        "number_for_a_tuple",
        lambda: as_roles({"w": -2}),
        TypeError,
        ("roles['w']", "got -2", '("in", "out")'),
    ),
    case(
        "no_roles", lambda: as_roles({"w": ()}), ValueError, ("roles['w']", "()", '("in", "out")')
    ),
    case("no_rules", lambda: as_roles({}), ValueError, ("roles", "none", "Leave it out")),
    case(
        "two_for_the_same_number_of_axes",
        lambda: as_roles({"w": [("in", "out"), ("out", "in")]}),
        ValueError,
        ("roles['w']", "2 axes", "two rules"),
    ),
    case(
        "name_of_a_layout",
        lambda: as_roles("torch"),
        TypeError,
        ("roles", "'torch'", "jaxprune.torch_roles"),
    ),
    case(
        "roles_without_a_path",
        lambda: as_roles(("in", "out")),
        TypeError,
        ("roles", "('in', 'out')", "{'.*': ('in', 'out')}"),
    ),
    case(
        "function_that_was_not_called",
        lambda: as_roles(as_roles),
        TypeError,
        ("roles", "function", "axis_roles(apply_fn, variables, *inputs)"),
    ),
    case("not_a_mapping", lambda: as_roles(3), TypeError, ("roles", "got 3", "axis_roles")),
    case(
        "not_a_regex",
        lambda: as_roles({"*kernel": ("in", "out")}),
        ValueError,
        ("roles", "'*kernel'", '".*kernel"'),
    ),
    case(
        "not_a_string",
        lambda: as_roles({2: ("in", "out")}),
        TypeError,
        ("roles", "got 2", "'.*kernel'"),
    ),
    case(
        "axis_roles_of_pairs",
        lambda: AxisRoles([("w", ("in", "out"))]),
        TypeError,
        ("AxisRoles: roles", "('in', 'out')", '{"fc/kernel": ("in", "out")}'),
    ),
    case(
        "axis_roles_unknown_word",
        lambda: AxisRoles({"w": ("in", "oot")}),
        ValueError,
        ("AxisRoles: roles['w']", "'oot'", 'Did you mean "out"?'),
    ),
    case(
        "axis_roles_key",
        lambda: AxisRoles({2: ("in", "out")}),
        TypeError,
        ("AxisRoles: roles", "got 2", "path"),
    ),
    case(
        "reason",
        lambda: AxisRoles({}, {"b": 0}),
        TypeError,
        ("AxisRoles: without['b']", "got 0", "string"),
    ),
    case(
        "shape",
        lambda: AxisRoles({}, {}, {"b": 4}),
        TypeError,
        ("AxisRoles: shapes['b']", "got 4", "tuple of ints"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BAD_ROLES)
def test_errors_about_roles_say_what_to_write(call, kind, parts):
    assert_error(call, kind, parts)


def test_public_names():
    assert jaxprune.torch_roles is torch_roles
    assert jaxprune.equinox_roles is equinox_roles
