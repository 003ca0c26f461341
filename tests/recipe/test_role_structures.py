"""Structures by roles: every leaf is decided as the matrix or the stack of matrices it is."""

import functools
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

import jaxprune
from bad_input import assert_error, case
from helpers import assert_says, grads_at, ones, random_params
from jaxprune import (
    NM,
    AxisRoles,
    Block,
    Channel,
    Unstructured,
    equinox_roles,
    torch_roles,
)
from jaxprune._recipe.pools import round_half_up

HALF = jaxprune.one_shot_schedule(0.5)


def places(roles, *names):
    return [axis for axis, role in enumerate(roles) if role in names]


def as_matrices(x, roles, rows):
    """A leaf as an array [slices, rows, columns]; the rows are the axes that have these roles."""
    lead, low = places(roles, "stack"), places(roles, *rows)
    high = [axis for axis in range(len(roles)) if axis not in lead + low]
    moved = np.transpose(x, lead + low + high)
    n_slices, n_rows = (int(np.prod([x.shape[a] for a in axes])) for axes in (lead, low))
    return moved.reshape(n_slices, n_rows, -1)


# Slow oracles: which units of one matrix are kept


def nm_oracle(scores, n, m):
    mask = np.zeros(scores.shape, bool)
    for column in range(scores.shape[1]):
        for row in range(0, scores.shape[0], m):
            best = np.argsort(-scores[row : row + m, column], kind="stable")[:n]
            mask[row + best, column] = True
    return mask


def channel_oracle(scores):
    norms = np.sqrt((scores.astype(np.float64) ** 2).sum(0))
    mask = np.ones(scores.shape, bool)
    mask[:, np.argsort(norms)[: round_half_up(Fraction(len(norms), 2))]] = False
    return mask


def block_oracle(scores, shape):
    corners = [
        (row, column)
        for row in range(0, scores.shape[0], shape[0])
        for column in range(0, scores.shape[1], shape[1])
    ]

    def block(x, corner):
        return x[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]]

    mask = np.ones(scores.shape, bool)
    by_score = sorted(corners, key=lambda c: block(scores, c).astype(np.float64).mean())
    for corner in by_score[: round_half_up(Fraction(len(corners), 2))]:
        block(mask, corner)[:] = False
    return mask


def weight_oracle(scores):
    mask = np.ones(scores.size, bool)
    mask[np.argsort(scores.ravel())[: round_half_up(Fraction(scores.size, 2))]] = False
    return mask.reshape(scores.shape)


# The structure, the roles of the rows of the matrix, and the oracle.
ORACLES = {
    "2:4": (NM(2, 4), ("in",), lambda scores: nm_oracle(scores, 2, 4)),
    "channel": (Channel(), ("in", "window"), channel_oracle),
    "block": (Block((2, 3)), ("in", "window"), lambda scores: block_oracle(scores, (2, 3))),
    "unstructured": (Unstructured(), ("in", "window"), weight_oracle),
}
# Axes in every order; some rows lie on several axes, of which the last alone fits no group of 4.
LEAVES = {
    "dense": (("in", "out"), (8, 6)),
    "torch": (("out", "in"), (6, 8)),
    "query": (("in", "out", "out"), (8, 2, 3)),
    "attention": (("in", "in", "out"), (2, 6, 5)),
    "head": (("in", "in", "out"), (3, 4, 5)),
    "between": (("in", "out", "in"), (2, 3, 6)),
    "conv": (("window", "window", "in", "out"), (3, 2, 4, 5)),
    "torch_conv": (("out", "in", "window"), (5, 4, 3)),
    "layers": (("stack", "in", "out"), (3, 8, 4)),
    "layers_second": (("in", "stack", "out", "out"), (8, 3, 2, 3)),
    "experts": (("stack", "out", "stack", "in"), (2, 5, 2, 4)),
}
ROLES = {name: roles for name, (roles, _) in LEAVES.items()}
SHAPES = {name: shape for name, (_, shape) in LEAVES.items()}


def make_params(seed=0):
    return random_params(SHAPES, seed=seed) | {"bias": ones(6), "n": jnp.arange(4)}


def assert_is_by_oracle(name, mask, scores, roles, kind):
    _, rows, oracle = ORACLES[kind]
    masks = as_matrices(np.asarray(mask), roles, rows)
    for got, of_slice in zip(masks, as_matrices(scores, roles, rows), strict=True):
        np.testing.assert_array_equal(got, oracle(of_slice), err_msg=name)


@functools.cache
def one_shot(kind):
    """The masks of `prune_params` with all roles, as one program of the params."""
    options = dict(structure=ORACLES[kind][0], roles=ROLES)
    return jax.jit(lambda params: jaxprune.prune_params(params, 0.5, **options)[1])


@pytest.mark.parametrize("kind", ORACLES)
def test_every_leaf_is_decided_as_the_matrices_that_it_is(kind):
    params = make_params()
    masks = one_shot(kind)(params)
    for name, roles in ROLES.items():
        assert_is_by_oracle(name, masks[name], np.abs(params[name]), roles, kind)
    assert masks["bias"].all()


@st.composite
def leaves(draw):
    """Roles in any order, and lengths; the inputs are a multiple of 4, on one or two axes."""
    inputs = draw(st.sampled_from(((4,), (8,), (2, 2), (2, 6))))
    others = draw(st.lists(st.sampled_from(("stack", "window", "out")), max_size=3))
    axes = [("in", n) for n in inputs] + [("out", 3)]
    axes = draw(st.permutations(axes + [(role, 2) for role in others]))
    return tuple(role for role, _ in axes), tuple(n for _, n in axes)


@pytest.mark.parametrize("kind", ORACLES)
@given(leaf=leaves(), seed=st.integers(0, 99))
@settings(max_examples=4)  # each example is compiled
def test_leaves_of_any_roles_are_decided_as_matrices(kind, leaf, seed):
    roles, shape = leaf
    params = random_params({"w": shape, "b": (3,)}, seed=seed)
    options = dict(structure=ORACLES[kind][0], roles={"w": roles})
    sparse, masks = jax.jit(lambda p: jaxprune.prune_params(p, 0.5, **options))(params)
    assert_is_by_oracle("w", masks["w"], np.abs(params["w"]), roles, kind)
    np.testing.assert_array_equal(sparse["w"], np.where(masks["w"], params["w"], 0))
    np.testing.assert_array_equal(sparse["b"], params["b"])


@pytest.mark.parametrize("name", ("query", "attention", "between"))
@pytest.mark.parametrize(
    "structure, on_matrix",
    [
        (NM(2, 4), NM(2, 4, axis=-2)),
        (Channel(norm=1), Channel(axis=-1, norm=1)),
        (Block((2, 2)), Block((2, 2))),
        (Block((1, 2), balanced=True), Block((1, 2), balanced=True)),
    ],
    ids=("2:4", "channel", "block", "balanced"),
)
def test_a_leaf_has_the_mask_of_its_matrix_with_ties(name, structure, on_matrix):
    roles, shape = LEAVES[name]
    w = np.random.default_rng(1).integers(-2, 3, size=shape).astype(np.float32)
    [matrix] = as_matrices(w, roles, ("in", "window"))
    _, masks = jaxprune.prune_params(
        {"w": w, "b": ones(3)}, 0.5, structure=structure, roles={"w": roles}
    )
    _, of_matrix = jaxprune.prune_params({"w": matrix, "b": ones(3)}, 0.5, structure=on_matrix)
    [got] = as_matrices(np.asarray(masks["w"]), roles, ("in", "window"))
    np.testing.assert_array_equal(got, of_matrix["w"])


# The cases of the issue


def test_groups_of_attention_lie_along_what_is_summed_over():
    """B1: query (32, 4, 8) sums over 32 inputs, out (4, 8, 32) over heads and head_dim."""
    shapes = {"query": {"kernel": (32, 4, 8)}, "out": {"kernel": (4, 8, 32)}, "b": (8,)}
    roles = {"query/kernel": ("in", "out", "out"), "out/kernel": ("in", "in", "out")}
    sparse, _ = jaxprune.prune_params(
        random_params(shapes), 0.5, structure=NM(2, 4), roles=AxisRoles(roles)
    )
    query = np.asarray(sparse["query"]["kernel"]).reshape(8, 4, 32)
    out = np.asarray(sparse["out"]["kernel"]).reshape(8, 4, 32)
    assert np.all((query != 0).sum(1) == 2)
    assert np.all((out != 0).sum(1) == 2)


@pytest.mark.parametrize("structure", (NM(2, 4), Channel()), ids=("2:4", "channel"))
def test_leaves_of_unknown_axes_are_refused_together(structure):
    """B2 and B6: three axes, or two and the name `weight`."""
    tree = {
        "q": {"kernel": ones(16, 8, 8)},
        "up": ones(4, 16, 8),
        "fc": {"weight": ones(8, 8), "kernel": ones(8, 8)},
        "wte": {"weight": ones(8, 8)},
        "b": ones(8),
    }
    for run in (jaxprune.plan, lambda p, s, **k: jaxprune.prune(HALF, **k).init(p)):
        assert_error(
            lambda run=run: run(tree, 0.5, structure=structure),
            ValueError,
            (
                ("q/kernel: ", "up: ", "fc/weight, wte/weight: "),
                ("3 axes (16, 8, 8)", "3 axes (4, 16, 8)", "weight may be (out, in)"),
                ("exclude='wte/weight'", "roles={", "'fc/weight': ('out', 'in')", "axis_roles"),
                ("axis=, which must be", "for (in, out) or (layers, in, out)"),
            ),
        )


@pytest.mark.parametrize("n_layers, last", ((8, "the other leaf; "), (9, "the other 2 leaves; ")))
def test_every_suggestion_names_its_leaves_however_many_there_are(n_layers, last):
    """`exclude` was missing where the first embedding was the ninth leaf: a KeyError."""
    tree = {f"layer{i:02}": {"kernel": ones(8, 2, 4)} for i in range(n_layers + 1)}
    tree["wte"] = ones(8, 8)
    with pytest.raises(ValueError, match="wte: ") as error:
        jaxprune.plan(tree, 0.5, structure=NM(2, 4))
    assert_says(str(error.value), "exclude='wte'", "'layer07/kernel': ...}", f"So for {last}")
    assert len(error.value.arguments["roles"]) == 8


@pytest.mark.parametrize("structure", (NM(2, 4), Channel()), ids=("2:4", "channel"))
@pytest.mark.parametrize(
    "path, shape",
    {
        "gru/weight_ih": (24, 16),  # Equinox
        "lstm.weight_hh_l0_reverse": (32, 8),  # torch
        "attn.in_proj_weight": (24, 8),
        "net/~/conv2_d_transpose/w": (3, 3, 8, 4),  # Haiku stores it as (..., out, in)
        "ConvTranspose_0/kernel": (3, 3, 8, 4),  # and Flax, with transpose_kernel=True
        "deconv1/kernel": (3, 3, 8, 4),
        "conv1/w": (8, 4, 3, 3),  # the default of jax.lax.conv
        "conv3d/kernel": (4, 16, 2, 2, 2),
    }.items(),
)
def test_names_and_shapes_of_other_layouts_are_refused(path, shape, structure):
    """They were taken as (in, out): groups lay along the outputs, or along the window."""
    tree = {path: ones(*shape), "other/kernel": ones(8, 4)}
    with pytest.raises(ValueError, match="roles=") as error:
        jaxprune.plan(tree, 0.5, structure=structure)
    is_like_lax_conv = shape[-1] == shape[-2]
    hint = f"roles={{'{path}': ('out', 'in', 'window'" if is_like_lax_conv else "axis="
    assert_says(str(error.value), f"{path}: ", hint)


def test_ready_made_roles_are_for_the_names_that_are_refused():
    cell = {"weight_ih": ones(24, 16), "weight_hh": ones(24, 8), "bias_n": ones(8)}
    with pytest.raises(ValueError, match=r"weight_ih may be \(out, in\)"):
        jaxprune.plan(cell, 0.5, structure=NM(2, 4))
    for roles in (equinox_roles, torch_roles):
        planned = jaxprune.plan(cell, 0.5, structure=NM(2, 4), roles=roles)
        assert [leaf.note for leaf in planned.leaves] == [
            "1-D",
            *["NM(n=2, m=4, axis=-1)"] * 2,
        ]


def test_tables_of_embeddings_have_no_groups_along_the_vocabulary():
    tree = {"Embed_0": {"embedding": ones(8, 4)}, "fc": {"kernel": ones(8, 4)}}
    assert_error(
        lambda: jaxprune.plan(tree, 0.5, structure=NM(2, 4)),
        ValueError,
        ("Embed_0/embedding: ", "no inputs", ("exclude='Embed_0/embedding'", "roles={")),
    )
    rest = jaxprune.plan(tree, 0.5, structure=NM(2, 4), exclude="Embed_0/.*")
    assert [leaf.n_zero for leaf in rest.leaves] == [0, 16]
    tied = jaxprune.plan(tree, 0.5, structure=NM(2, 4), roles={".*embedding": ("out", "in")})
    assert tied.leaves[0].note == "embedding; NM(n=2, m=4, axis=-1)"
    patches = jaxprune.plan({"patch_embed": {"kernel": ones(8, 4)}}, 0.5, structure=NM(2, 4))
    assert patches.n_zero == 16
    # Of a table, features are outputs.
    assert jaxprune.plan(tree, 0.5, structure=Channel()).leaves[0].n_zero == 16


@pytest.mark.parametrize("reason", ("only indexed", "used in two ways: (out, in) and (in, out)"))
@pytest.mark.parametrize("kernel", ("A", "q"))  # before and after the embedding
def test_embeddings_are_left_out_first(kernel, reason):
    tree = {"Embed_0": {"embedding": ones(8, 4)}, kernel: ones(4, 2, 4), "b": ones(4)}
    roles = AxisRoles({"b": ("out",)}, {"Embed_0/embedding": reason})
    with pytest.raises(ValueError, match=rf"\b{kernel}: ") as error:
        jaxprune.plan(tree, 0.5, structure=NM(2, 4), roles=roles)
    text = str(error.value)
    assert_says(
        text,
        "Embed_0/embedding: ",
        reason,
        "'Embed_0/embedding': ('out', 'in')",
        f"'{kernel}': ...",
        "{**roles, ...}",
    )
    assert text.index("exclude='Embed_0/embedding'") < text.index("roles={")
    del tree[kernel]
    assert_error(
        lambda: jaxprune.plan(tree, 0.5, structure=NM(2, 4), roles=roles),
        ValueError,
        ("Embed_0/embedding: ", reason, ("left out: exclude='Embed_0/embedding'", "roles={")),
    )


def test_one_error_lists_all_leaves_of_unknown_axes():
    tree = {f"w{i}": ones(i, 4, 8) for i in range(1, 12)} | {"b": ones(4)}
    with pytest.raises(ValueError, match="w9") as error:
        jaxprune.plan(tree, 0.5, structure=NM(2, 4))
    problem = error.value.problem
    assert all(re.search(rf"\b{name}\b", problem) for name in tree if name != "b")


def test_names_that_are_taken_as_in_out():
    """B6: `kernel`, `w` and others of two axes; convolutions of Flax and Haiku by their names."""
    tree = {
        "fc": {"kernel": ones(8, 4)},
        "linear": {"w": ones(8, 4)},
        "table": ones(8, 4),
        "Conv_0": {"kernel": ones(3, 3, 8, 4)},
        "net/~/conv2_d": {"w": ones(3, 3, 8, 4)},
        "refine_conv": {"kernel": ones(7, 7, 4, 4)},  # a window that is longer than its channels
        "CausalConv1D": {"kernel": ones(2, 3, 8, 4)},  # layers of a scan
        "b": ones(4),
    }
    params = jax.tree.map(lambda x: x * jnp.arange(1.0, x.size + 1).reshape(x.shape), tree)
    for structure in (NM(2, 4), Channel()):
        _, masks = jaxprune.prune_params(params, 0.5, structure=structure)
        named = type(structure)
        axis = dict(axis=-2, n=2, m=4) if named is NM else dict(axis=-1)
        _, by_axis = jaxprune.prune_params(params, 0.5, structure=named(**axis))
        jax.tree.map(np.testing.assert_array_equal, masks, by_axis)


def test_channels_of_several_axes_are_single_outputs_or_whole_heads_as_asked():
    """B4, on (8, 2, 4): outputs one by one, and heads."""
    w = jnp.arange(1.0, 65.0).reshape(8, 2, 4)
    w = w.at[:, 1, 2].set(0.5).at[:, 0, :2].set(0.25)
    roles = {"w": ("in", "out", "out")}
    outputs = jaxprune.prune_params({"w": w}, 3 / 8, structure=Channel(), roles=roles)[1]["w"]
    dropped = np.argwhere(~np.asarray(outputs).any(0)).tolist()
    assert dropped == [[0, 0], [0, 1], [1, 2]]
    assert outputs.sum() == 8 * 5
    heads = jaxprune.prune_params({"w": w}, 0.5, structure=Channel(axis=1), roles=roles)[1]["w"]
    assert np.asarray(heads).all((0, 2)).tolist() == [False, True]
    assert heads.sum() == 32


def test_an_explicit_axis_does_not_depend_on_roles():
    params = {"w": make_params()["layers"], "bias": ones(3)}
    roles = {"w": LEAVES["layers"][0]}
    for structure in (NM(1, 2, axis=1), Channel(axis=1), Channel(axis=0), Block((1, 2, 2))):
        _, with_roles = jaxprune.prune_params(params, 0.5, structure=structure, roles=roles)
        _, without = jaxprune.prune_params(params, 0.5, structure=structure)
        np.testing.assert_array_equal(with_roles["w"], without["w"])


def test_layouts_of_torch_turn_the_matrix():
    """B6: three of six per output."""
    w = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    params = {"fc": {"weight": w, "bias": ones(6)}}
    _, masks = jaxprune.prune_params(params, 0.5, structure=NM(3, 6), roles=torch_roles)
    assert np.sum(~np.asarray(masks["fc"]["weight"]), 1).tolist() == [3] * 6
    _, turned = jaxprune.prune_params({"w": w.T}, 0.5, structure=NM(3, 6))
    np.testing.assert_array_equal(masks["fc"]["weight"], turned["w"].T)


def test_old_pickles_have_their_axis():
    """What an older release pickled holds the axis that was its default."""
    old = NM.__new__(NM)
    vars(old).update(n=2, m=4, axis=-2)
    assert old == NM(2, 4, axis=-2) != NM(2, 4)
    assert jaxprune.plan({"w": ones(3, 8, 4)}, 0.5, structure=old).n_zero == 48


# Every form of the transformation


# Of every kind one, so that the programs are small: axes in another order, inputs on two axes,
# windows, and slices.
FEW = ("torch", "attention", "conv", "layers_second", "bias", "n")


def few(tree):
    return {name: tree[name] for name in FEW if name in tree}


@pytest.mark.parametrize("kind", ORACLES)
@pytest.mark.parametrize("form", ("chain", "inner", "packed"))
def test_every_form_has_the_masks_of_one_shot(kind, form):
    params, masks = few(make_params()), few(one_shot(kind)(make_params()))
    options = dict(structure=ORACLES[kind][0], roles=few(ROLES))
    if form == "chain":
        tx = optax.chain(optax.sgd(0.1), jaxprune.prune(HALF, **options))
    else:
        inner = optax.sgd(0.1)
        tx = jaxprune.prune(HALF, inner=inner, packed=form == "packed", **options)
    update = jax.jit(tx.update)
    state, pruned = tx.init(params), params
    for t in range(3):
        updates, state = update(grads_at(params, t), state, pruned)
        pruned = optax.apply_updates(pruned, updates)
    assert update._cache_size() <= 1
    jax.tree.map(np.testing.assert_array_equal, jaxprune.get_masks(state), masks)
    jaxprune.check(pruned, state, done=True)


@pytest.mark.parametrize("kind", ("2:4", "block"))
def test_members_of_a_vmap_have_masks_of_their_own(kind):
    tx = jaxprune.prune(HALF, structure=ORACLES[kind][0], roles=few(ROLES))
    members = [make_params(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *map(few, members))
    zeros = jax.tree.map(np.zeros_like, stacked)
    state = jax.jit(jax.vmap(tx.init))(stacked)
    _, state = jax.jit(jax.vmap(tx.update))(zeros, state, stacked)
    for i, params in enumerate(members):
        masks = one_shot(kind)(params)
        for name in few(ROLES):
            np.testing.assert_array_equal(state.masks[name][i], masks[name], err_msg=name)


def test_sparse_training_grows_and_drops_outputs():
    params = {name: x for name, x in make_params().items() if name in ("query", "layers", "bias")}
    roles = {name: ROLES[name] for name in ("query", "layers")}
    tx = jaxprune.rigl(0.5, 4, every=2, inner=optax.sgd(0.1), structure=Channel(), roles=roles)
    state = tx.init(params)
    for t in range(5):
        updates, state = jax.jit(tx.update)(grads_at(params, t), state, params)
        params = optax.apply_updates(params, updates)
    for name, of_roles in roles.items():
        mask = as_matrices(np.asarray(state.masks[name]) > 0, of_roles, ("in",))
        assert np.all(mask.all(1) == mask.any(1))  # outputs are whole


# Wrong input

KERNEL = {"w": ones(16, 8, 8), "v": ones(8, 8), "b": ones(8)}
IN_OUT = {"w": ("in", "out", "out"), "v": ("in", "out")}


def planned(structure=NM(2, 4), roles=None, **rules):
    return jaxprune.plan(KERNEL, 0.5, structure=structure, roles=roles, **rules)


BAD = [
    case(
        "no_inputs",
        lambda: planned(roles={"w": ("stack", "out", "out")}),
        ValueError,
        ("w: ", ("'in'", "('out', 'out')"), ("exclude='w'", "structure=")),
    ),
    case(
        "no_outputs",
        lambda: planned(Channel(), {"w": ("in", "in", "window")}),
        ValueError,
        ("w: ", ("'out'", "('in', 'in', 'window')"), ("exclude='w'", "structure=")),
    ),
    case(
        "inputs_that_fit_no_group",
        lambda: planned(NM(8, 16), {"w": ("out", "in", "out"), "v": ("in", "out")}),
        ValueError,
        ("w: ", ("multiple of 16", "length 8"), ("exclude=['v', 'w']", "structure=")),
    ),
    case(
        "flattened_inputs_that_fit_no_group",
        lambda: planned(NM(3, 6), {"w": ("out", "in", "in"), "v": ("in", "out")}),
        ValueError,
        ("w: ", ("multiple of 6", "length 64", "(16, 8, 8)"), "structure="),
    ),
    case(
        "used_in_two_ways",
        lambda: planned(roles=AxisRoles({"w": ("in", "out", "out")}, {"v": "used in two ways"})),
        ValueError,
        ("v: ", "used in two ways", "roles={'v': ...}"),
    ),
    case(
        "roles_of_another_model",
        lambda: planned(roles=AxisRoles({"w": ("in", "out")})),
        ValueError,
        ("w: ", ("2 axes", "(16, 8, 8)"), "axis_roles"),
    ),
    case(
        "rule_for_other_numbers_of_axes",
        lambda: planned(roles={"v": ("out", "in", "in"), "w": [("in",), ("out", "in")]}),
        ValueError,
        (
            ("roles: 'v'", "'w'"),
            ("('out', 'in', 'in')", "v of shape (8, 8)", "1 or 2 roles", "w of shape (16, 8, 8)"),
            ("roles={'v': ('in', 'out'), 'w': ('in', 'out', 'out')}", "remove"),
        ),
    ),
    case(
        "same_sizes_in_another_order",
        lambda: planned(roles=AxisRoles({"w": ("in", "out", "out")}, {}, {"w": (8, 16, 8)})),
        ValueError,
        ("w: ", ("axis_roles saw shape (8, 16, 8)", "(16, 8, 8)"), "axis_roles again"),
    ),
    case(
        "rule_that_matches_nothing",
        lambda: planned(roles={**IN_OUT, "ww": ("in", "out")}),
        ValueError,
        ("roles: 'ww'", "matches no leaf", None),
    ),
    case(
        "layout_of_another_library",
        lambda: planned(roles=torch_roles),
        ValueError,
        ("roles: ", ("b, v, w", "weight"), "axis_roles"),
    ),
    case(
        "roles_of_another_tree",
        lambda: planned(roles=AxisRoles({"x/w": ("in", "out")})),
        ValueError,
        ("roles: ", ("b, v, w", "x/w"), "axis_roles"),
    ),
    case(
        "slices_of_leaves_that_are_split",
        lambda: jaxprune.prune(HALF, roles={"w": ("stack", "in", "out")}, axis_name="data"),
        ValueError,
        ("axis_name: ", "'stack'", "Leave out roles"),
    ),
]


@pytest.mark.parametrize("call, kind, parts", BAD)
def test_errors_say_which_leaf_and_what_to_write(call, kind, parts):
    assert_error(call, kind, parts)


@pytest.mark.parametrize(
    "roles",
    (
        {".*": ("in", "out", "out"), "v": [("in",), ("in", "out")]},
        {".*": ("in", "out"), "w": ("in", "out", "out")},
        AxisRoles(IN_OUT, {}, {"w": (16, 8, 8), "v": (4, 2)}),
        AxisRoles(IN_OUT, {}, {"w": (16, 8, 4), "v": (8, 8)}),  # other widths
    ),
)
def test_rules_that_fit_some_leaf_are_allowed(roles):
    assert planned(roles=roles).n_zero == (16 * 8 * 8 + 8 * 8) // 2


@pytest.mark.parametrize("roles", (torch_roles, equinox_roles))
@pytest.mark.parametrize("path", ("norm/weight", "norm.weight"))
def test_ready_made_roles_need_not_fit(roles, path):
    tree = {path: ones(8), "v": ones(8, 8)}
    assert jaxprune.plan(tree, 0.5, structure=NM(2, 4), roles=roles).n_zero == 32


def test_roles_may_fit_a_hidden_leaf_only():
    tx = optax.masked(
        jaxprune.prune(HALF, roles={".": ("in", "out", "out")}), {"w": False, "v": True, "b": True}
    )
    assert tx.init(KERNEL).inner_state.masks["v"].shape == (8, 8)


def test_roles_of_hidden_leaves_need_not_match():
    tx = optax.masked(
        jaxprune.prune(HALF, roles={"w": ("in", "out", "out"), "v": ("in", "out")}),
        {"w": False, "v": True, "b": True},
    )
    assert tx.init(KERNEL).inner_state.masks["v"].shape == (8, 8)
    read = AxisRoles({"params/w": ("in", "out", "out")})
    tx = optax.masked(jaxprune.prune(HALF, roles=read), {"w": False, "v": True, "b": True})
    assert tx.init(KERNEL).inner_state.masks["v"].shape == (8, 8)


# Explicit axes


@pytest.mark.parametrize("name", ("query", "key", "value", "q_proj", "qkv"))
def test_no_axis_is_suggested_for_kernels_whose_heads_are_outputs(name):
    """Axis -2, as for (layers, in, out), would group along the heads."""
    tree = {"attention": {name: {"kernel": ones(8, 4, 4)}}}
    with pytest.raises(ValueError, match=r"kernel: .*roles=") as error:
        jaxprune.plan(tree, 0.5, structure=NM(2, 4))
    assert "axis=" not in str(error.value).replace("axis=None", "")
    others = tree | {"layers": {"kernel": ones(3, 8, 4)}}
    with pytest.raises(
        ValueError, match=r"structure=NM\(n=2, m=4, axis=-2\) .*head_dim are outputs"
    ):
        jaxprune.plan(others, 0.5, structure=NM(2, 4))


def test_plan_notes_an_axis_of_groups_that_no_product_sums_over():
    tree = {"query": {"kernel": ones(8, 4, 4)}, "out": {"kernel": ones(4, 4, 8)}, "b": ones(4, 4)}
    roles = {"query/kernel": ("in", "out", "out"), "out/kernel": ("in", "in", "out")}
    report = jaxprune.plan(tree, 0.5, structure=NM(2, 4, axis=-2), roles=roles)
    [note] = report.notes
    assert_says(note, "NM(n=2, m=4, axis=-2)", "query/kernel along an axis of role 'out'")
    assert "out/kernel" not in note.replace("query/kernel", "")
    for options in (
        dict(structure=NM(2, 4, axis=-2)),
        dict(structure=NM(2, 4), exclude="b", roles=roles),
    ):
        assert jaxprune.plan(tree, 0.5, **options).notes == ()
    table = {"embedding": ones(8, 4)}
    looked_up = {"embedding": ("out", "in")}
    assert not jaxprune.plan(table, 0.5, structure=NM(2, 4, axis=0), roles=looked_up).notes
