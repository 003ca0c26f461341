"""Parts of a leaf inside `shard_map`, `pmap` and `vmap`: one threshold for the whole."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import jaxprune
from helpers import on_device
from jaxprune._topk.topk import select

N = 8
SCHEDULE = jaxprune.cubic_schedule(0.75, 0, 4, 2)
HALF = jaxprune.one_shot_schedule(0.5)
PARTS = {"a": P("d"), "b": P("d"), "bias": P()}


def make_params(kind="normal"):
    rng = np.random.default_rng(0)
    leaves = {"a": rng.normal(size=(16, 12)), "b": rng.normal(size=(8, 5)) * 3}
    leaves = {name: np.round(w) if kind == "ties" else w for name, w in leaves.items()}
    return {name: on_device(w) for name, w in leaves.items()} | {"bias": jnp.ones(3)}


def grads_of(params, t):
    return jax.tree.map(lambda p: 0.125 * (p + t), params)


def whole_run(tx, params):
    @jax.jit
    def step(t, state, params):
        updates, state = tx.update(grads_of(params, t), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(6):
        params, state = step(np.float32(t), state, params)
    return params, state


@functools.cache
def mesh():
    return jax.make_mesh((N,), ("d",), axis_types=(AxisType.Auto,))


def spread_run(tx, params, **options):
    state = tx.init(params)

    def specs(tree):
        inner_state = jax.tree.map(lambda _: P(), tree)
        return jaxprune.PruneState(P(), PARTS, P(), P(), inner_state, progress=P())

    where = specs(state.inner_state)

    def step(t, state, params):
        updates, state = tx.update(grads_of(params, t), state, params)
        return optax.apply_updates(params, updates), state

    forms = {"in_specs": (P(), where, PARTS), "out_specs": (PARTS, where)}
    step = jax.jit(jax.shard_map(step, mesh=mesh(), **forms, **options))
    for t in range(6):
        params, state = step(np.float32(t), state, params)
    return params, state


@pytest.mark.parametrize("kind", (pytest.param("normal", marks=pytest.mark.slow), "ties"))
@pytest.mark.parametrize(
    "distribution, ties",
    [
        (jaxprune.uniform, "index"),
        pytest.param(jaxprune.uniform, "hashed", marks=pytest.mark.slow),
        pytest.param(jaxprune.global_pool, "index", marks=pytest.mark.slow),
        (jaxprune.global_pool, "hashed"),
    ],
    ids=str,
)
def test_parts_share_the_budget_and_the_threshold_of_the_whole(distribution, ties, kind):
    options = {"distribution": distribution, "ties": ties}
    want, state = whole_run(jaxprune.prune(SCHEDULE, **options), make_params(kind))
    tx = jaxprune.prune(SCHEDULE, axis_name="d", **options)
    got, spread = spread_run(tx, make_params(kind))
    np.testing.assert_array_equal(state.thresholds, spread.thresholds)
    assert spread.violations == 0
    jaxprune.check(got, spread)
    n_zero = {name: int(np.sum(~m)) for name, m in jaxprune.get_masks(spread).items()}
    assert n_zero["bias"] == 0
    if distribution is jaxprune.uniform:  # ties are broken by the index in the whole leaf
        chex.assert_trees_all_equal(got, want)
        assert n_zero == {"a": 144, "b": 30, "bias": 0}
    else:  # ties are broken by part
        assert n_zero["a"] + n_zero["b"] == 174
        if kind == "normal":
            chex.assert_trees_all_equal(got, want)


def update_in_shard_map(tx, specs, change=lambda grads: grads):
    """Traces one update, with a state that is not split but for its masks.

    Args: the transformation, the specs of params, grads and masks, and what happens to the grads on
    each device before the update.
    """
    params = make_params()
    state = tx.init(params)
    where = jax.tree.map(lambda _: P(), state)._replace(masks=specs)

    def step(grads, state, params):
        return tx.update(change(grads), state, params)[0]

    step = jax.shard_map(step, mesh=mesh(), in_specs=(specs, where, specs), out_specs=P("d"))
    return jax.eval_shape(step, params, state, params)


WHOLE = dict.fromkeys(PARTS, P())
SPLIT_A = {**WHOLE, "a": P("d")}


@pytest.mark.parametrize(
    "axis_name, specs, message",
    [
        (None, PARTS, r"a: this leaf differs .* along axis 'd' .*axis_name='d'\).*check_vma=False"),
        (None, SPLIT_A, r"a: this leaf differs .*axis_name='d'\)"),
        ("d", WHOLE, r"a: axis_name='d' .* the same on all .* leave axis_name out"),
        ("d", SPLIT_A, r"b: axis_name='d' .* the same on all .* axis 'd' .*exclude='b'"),
    ],
)
def test_parts_that_do_not_fit_axis_name_are_named(axis_name, specs, message):
    for inner in (None, optax.sgd(0.1)):
        with pytest.raises(ValueError, match=message):
            update_in_shard_map(jaxprune.prune(SCHEDULE, inner=inner, axis_name=axis_name), specs)


def test_leaves_that_are_not_pruned_may_be_whole_or_parts():
    update_in_shard_map(jaxprune.prune(SCHEDULE, axis_name="d", exclude="b"), SPLIT_A)
    update_in_shard_map(jaxprune.prune(SCHEDULE, exclude="a"), SPLIT_A)
    update_in_shard_map(jaxprune.prune(SCHEDULE), WHOLE)


def test_gradients_that_a_score_reads_must_be_averaged():
    of_own_data = lambda grads: jax.tree.map(
        lambda g: g * jnp.float32(jax.lax.axis_index("d")), grads
    )
    tx = jaxprune.prune(SCHEDULE, score=jaxprune.saliency, inner=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"a: the score reads .*jax.lax.pmean\(grads, 'd'\)"):
        update_in_shard_map(tx, WHOLE, of_own_data)
    update_in_shard_map(tx, WHOLE, lambda grads: jax.lax.pmean(of_own_data(grads), "d"))
    update_in_shard_map(jaxprune.prune(SCHEDULE), WHOLE, of_own_data)


def test_without_axis_name_every_part_is_pruned_by_itself():
    got, state = spread_run(jaxprune.prune(SCHEDULE), make_params(), check_vma=False)
    del got
    for mask in np.split(np.asarray(jaxprune.get_masks(state)["a"]), N):
        assert np.sum(~mask) == 18


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
def test_selection_over_a_mapped_axis(wrap):
    scores = np.random.default_rng(1).normal(size=(N, 30, 7)).astype(np.float32)
    over = functools.partial(jax.vmap if wrap == "vmap" else jax.pmap, axis_name="d")
    selected = over(lambda s: select([s], jnp.array([500]), axis_name="d")[0][0])
    for values in (scores, np.round(scores)):  # among equal scores, those of earlier parts win
        (want,), _ = select([jnp.asarray(values)], [500])
        np.testing.assert_array_equal(selected(values), want)


def mapped_run(wrap, tx, params):
    """Params and state of every member after one update of `tx` in a map over the axis `d`."""

    @functools.partial(jax.vmap if wrap == "vmap" else jax.pmap, axis_name="d")
    def step(params):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return optax.apply_updates(params, updates), state

    return step(params)


def mapped_step(wrap, tx, params, state):
    """Params and state of every member after one more update in a map over the axis `d`."""

    @functools.partial(jax.vmap if wrap == "vmap" else jax.pmap, axis_name="d")
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    return step(params, state)


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
def test_check_adds_up_the_parts_of_a_mapped_leaf(wrap):
    parts = {"a": jnp.asarray(np.random.default_rng(2).normal(size=(N, 6, 5)), jnp.float32)}
    params, state = mapped_run(wrap, jaxprune.prune(HALF, axis_name="d"), parts)
    counts = np.sum(np.asarray(params["a"]) == 0, axis=(1, 2))
    assert counts.sum() == N * 15
    assert len(set(counts)) > 1
    jaxprune.check(params, state, done=True)
    fewer = {"a": jnp.where(params["a"] == 0, 0, parts["a"]).at[0].set(parts["a"][0])}
    with pytest.raises(ValueError, match=r"^a: .* dropped weights are not zero|^the params"):
        jaxprune.check(fewer, state, done=True)


@pytest.mark.parametrize("schedule", (HALF, [jaxprune.one_shot_schedule(0.0), HALF]), ids=type)
@pytest.mark.parametrize("options", ({}, {"packed": True, "distribution": jaxprune.global_pool}))
@pytest.mark.parametrize("wrap", ("vmap", "pmap", "inside"))
def test_metrics_count_all_parts_of_a_leaf(wrap, options, schedule):
    weights = {name: make_params()[name] for name in ("a", "b")}
    split = lambda n: {k: w.reshape(n, -1, w.shape[-1]) for k, w in weights.items()}
    whole = split(1) | {"bias": jnp.ones((1, 3))}
    parts = split(N) | {"bias": jnp.ones((N, 3))}
    tx = jaxprune.prune(schedule, **options)
    _, state = mapped_run("vmap", tx, whole)
    want = jaxprune.metrics(state, per_leaf=True)
    tx = jaxprune.prune(schedule, axis_name="d", **options)
    _, state = mapped_run("vmap" if wrap == "inside" else wrap, tx, parts)
    read = functools.partial(jaxprune.metrics, per_leaf=True)
    got = (jax.vmap(read) if wrap == "inside" else read)(state)
    assert {name: x.tolist() for name, x in got.items()} == {
        name: x.tolist() * N for name, x in want.items()
    }


PARTS_OF_A = {"a": np.random.default_rng(3).normal(size=(N, 4, 5)).astype(np.float32)}


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
def test_set_masks_counts_all_parts(wrap):
    parts = PARTS_OF_A | {"bias": np.ones((N, 3), np.float32)}
    params, state = mapped_run(wrap, jaxprune.prune(HALF, axis_name="d"), parts)
    again = jaxprune.set_masks(state, jaxprune.get_masks(state))
    chex.assert_trees_all_equal(again, state)
    jaxprune.check(params, again, done=True)


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
def test_masks_that_drop_one_part_only_are_enough_for_all(wrap):
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.05), axis_name="d")
    params, state = mapped_run(wrap, tx, PARTS_OF_A)
    masks = {"a": np.ones((N, 4, 5), bool)}
    masks["a"][0] = False
    state = jaxprune.set_masks(state, masks)
    params, state = mapped_step(wrap, tx, params, state)
    assert not np.any(params["a"][0])
    np.testing.assert_array_equal(jaxprune.get_masks(state)["a"], masks["a"])
    np.testing.assert_array_equal(state.progress.reached, np.full((N, 1), 20))


INIT_IS_NOT_MAPPED_BY_NAME = {
    "masks of the user": (jaxprune.one_shot_schedule(0.0), False),
    "a schedule that ends dense": (
        jaxprune.SparsitySchedule(0, 40, 20, (0.5, 0.5, 0.0), may_fall=True),
        "zero",
    ),
    "a list": ([jaxprune.one_shot_schedule(0.5), jaxprune.one_shot_schedule(0.25)], False),
}


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
@pytest.mark.parametrize("name", INIT_IS_NOT_MAPPED_BY_NAME)
def test_a_state_made_for_each_part_counts_all_parts_after_an_update(wrap, name):
    schedule, regrow = INIT_IS_NOT_MAPPED_BY_NAME[name]
    tx = jaxprune.prune(schedule, axis_name="d", regrow=regrow)
    state = jax.vmap(tx.init)(PARTS_OF_A)
    if name == "masks of the user":
        masks = {"a": np.abs(PARTS_OF_A["a"]) > np.median(np.abs(PARTS_OF_A["a"]))}
        state = jaxprune.set_masks(state, masks)
    params, state = mapped_step(wrap, tx, PARTS_OF_A, state)
    assert np.sum(np.asarray(params["a"]) == 0) == N * 10
    assert jaxprune.metrics(state)["prune/sparsity"].tolist() == [0.5] * N
    assert state.progress.sizes.tolist() == [[N * 20]] * N
    if name == "a list":
        assert state.progress.choices.due.tolist() == [[[N * 10], [N * 5]]] * N
        jaxprune.check(params, jaxprune.choose_schedule(state, 1), done=True)


@pytest.mark.parametrize("parts_first", (True, False))
def test_an_ensemble_of_split_networks_is_checked_network_by_network(parts_first):
    tx = jaxprune.prune(HALF, axis_name="d")
    weights = np.random.default_rng(4).normal(size=(3, N, 4, 5)).astype(np.float32)
    params = {"a": weights, "bias": np.ones((3, N, 3), np.float32)}

    def one_update(params):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        return optax.apply_updates(params, updates), state

    if parts_first:
        params = jax.tree.map(lambda x: np.moveaxis(x, 1, 0), params)
        update = jax.vmap(jax.vmap(one_update), axis_name="d")
    else:
        update = jax.vmap(jax.vmap(one_update, axis_name="d"))
    params, state = update(params)
    assert state.prune_step.shape == ((N, 3) if parts_first else (3, N))
    jaxprune.check(params, state, done=True)
    chex.assert_trees_all_equal(jaxprune.set_masks(state, jaxprune.get_masks(state)), state)
    assert np.all(jaxprune.metrics(state)["prune/sparsity"] == 0.5)


@pytest.mark.parametrize("parts_first", (True, False))
@pytest.mark.parametrize("fired", (True, False))
def test_masks_of_as_many_networks_as_parts_count_for_each_network(fired, parts_first):
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5, step=0 if fired else 1), axis_name="d")
    axis = 0 if parts_first else 1
    params = np.random.default_rng(5).normal(size=(2, 2, 4, 5)).astype(np.float32)
    masks = np.ones((2, 2, 4, 5), bool)
    one, other = (np.moveaxis(masks, axis, 1)[i] for i in range(2))  # views
    one[0, :2] = False  # 10 of the 40 weights of this network, all in one part
    other[0] = other[1, :2] = False  # 30 of 40

    def update(params, state):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        return params + updates, state

    def mapped(function):
        names = ("d", None) if parts_first else (None, "d")
        for name in reversed(names):
            function = jax.vmap(function, axis_name=name) if name else jax.vmap(function)
        return function

    params, state = mapped(update)(params, mapped(tx.init)(params))
    state = jaxprune.set_masks(state, masks)
    for _ in range(2):
        params, state = mapped(update)(params, state)
    kept = np.moveaxis(np.asarray(jaxprune.get_masks(state)), axis, 1)
    assert (~kept).sum((1, 2, 3)).tolist() == [20, 30]
    sparsity = np.moveaxis(jaxprune.metrics(state)["prune/sparsity"], axis, 1)
    assert sparsity.tolist() == [[0.5, 0.5], [0.75, 0.75]]


@pytest.mark.parametrize("bias", (P(), P("d")))
@pytest.mark.parametrize("n_devices", (2, 4))
@pytest.mark.parametrize("is_upgraded", (True, False))
def test_parts_of_a_leaf_that_is_not_pruned_do_not_change_the_counts(bias, n_devices, is_upgraded):
    where = {"w": P("d"), "bias": bias}

    def update(tx, params, state, n_devices):
        specs = jax.tree.map(lambda _: P(), state)._replace(masks=where)

        def step(params, state):
            updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
            return optax.apply_updates(params, updates), state

        devices = jax.sharding.Mesh(np.array(jax.devices()[:n_devices]), ("d",))
        both = (where, specs)
        step = jax.jit(jax.shard_map(step, mesh=devices, in_specs=both, out_specs=both))
        return jax.tree.map(jnp.asarray, jax.device_get(step(params, state)))

    half, most = (
        jaxprune.prune(jaxprune.one_shot_schedule(sparsity), axis_name="d")
        for sparsity in (0.5, 0.8)
    )
    params = {"w": jnp.arange(1.0, 41.0).reshape(8, 5), "bias": jnp.ones(8)}
    params, state = update(half, params, half.init(params), 4)
    if is_upgraded:
        state = jaxprune.upgrade_state(most, params, state)
    params, state = update(most, params, state, n_devices)
    assert jnp.sum(params["w"] == 0) == 32
    assert jaxprune.metrics(state)["prune/sparsity"] == jnp.float32(0.8)
    jaxprune.check(params, state, done=True)


def test_equal_weights_are_no_copies():
    ones = {"a": jnp.ones((N, 6, 5)), "bias": jnp.ones((N, 3))}
    params, state = mapped_run("vmap", jaxprune.prune(HALF, axis_name="d"), ones)
    jaxprune.check(params, state, done=True)


def test_a_part_without_weights_is_no_emptied_leaf(recwarn):
    rising = {"a": jnp.arange(1.0, 1 + N * 6).reshape(N, 2, 3), "b": jnp.ones((N, 2, 3))}
    tx = jaxprune.prune(HALF, axis_name="d", exclude="b")
    params, state = mapped_run("vmap", tx, rising)
    assert not np.any(params["a"][0]), "the first part has the smallest weights"
    jaxprune.check(params, state, done=True)
    assert jaxprune.metrics(state)["prune/emptied_leaves"].tolist() == [0] * N
    assert not recwarn.list
    together = jaxprune.prune(HALF, axis_name="d", distribution=jaxprune.global_pool)
    small = {"a": rising["a"] + 100, "b": jnp.ones((N, 2, 3))}
    params, state = mapped_run("vmap", together, small)
    assert jaxprune.metrics(state)["prune/emptied_leaves"].tolist() == [1] * N
    with pytest.warns(UserWarning, match="b: every weight of this leaf is dropped"):
        jaxprune.check(params, state, done=True)


@pytest.mark.parametrize("wrap", ("vmap", "pmap"))
def test_check_says_that_an_axis_name_is_not_for_copies(wrap):
    copies = {"a": jnp.stack([make_params()["a"]] * N)}
    params, state = mapped_run(wrap, jaxprune.prune(HALF, axis_name="d"), copies)
    with pytest.raises(ValueError, match=r"copy of a, .* leave axis_name out"):
        jaxprune.check(params, state, done=True)
    jaxprune.check(*mapped_run(wrap, jaxprune.prune(HALF), copies), done=True)


def test_a_violation_in_one_part_is_counted_in_all():
    params = make_params()
    tx = optax.chain(jaxprune.prune(SCHEDULE, axis_name="d"), optax.scale(0.5))
    state = tx.init(params)
    where = (jaxprune.PruneState(P(), PARTS, P(), P(), P(), progress=P()), P())

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(
        jax.shard_map(step, mesh=mesh(), in_specs=(PARTS, where, PARTS), out_specs=(PARTS, where))
    )
    for _ in range(5):
        params, state = step(params, state, params)
    n_moved = sum(
        int(np.sum((np.asarray(params[n]) != 0) & ~m))
        for n, m in jax.device_get(jaxprune.get_masks(state)).items()
    )
    assert n_moved > 0
    assert state[0].violations > 0


def test_random_scores_differ_between_parts():
    tx = jaxprune.prune(HALF, axis_name="d", score=jaxprune.random_score)
    _, state = mapped_run("vmap", tx, PARTS_OF_A | {"bias": np.ones((N, 3), np.float32)})
    masks = np.asarray(jaxprune.get_masks(state)["a"])
    assert np.sum(~masks) == N * 10
    assert len({mask.tobytes() for mask in masks}) == N


@pytest.mark.filterwarnings("ignore:jaxprune.keep_zeros")
def test_masks_that_never_change_need_no_axis_name():
    for tx in (
        jaxprune.keep_zeros(optax.sgd(0.1)),
        jaxprune.static_sparse(0.5, inner=optax.sgd(0.1)),
    ):
        update_in_shard_map(tx, PARTS)


def test_what_rigl_says_of_parts_can_be_typed():
    with pytest.raises(ValueError, match=r"a: this leaf differs .*shard the params under jit") as e:
        update_in_shard_map(jaxprune.rigl(0.5, 9, inner=optax.sgd(0.1)), PARTS)
    assert "axis_name" not in str(e.value)


def test_options_that_need_the_whole_leaf_are_refused():
    with pytest.raises(ValueError, match=r"axis_name: .*erk.*uniform or jaxprune.global_pool"):
        jaxprune.prune(SCHEDULE, axis_name="d", distribution=jaxprune.erk)
    with pytest.raises(ValueError, match=r"axis_name: Channel.*jaxprune.Unstructured"):
        jaxprune.prune(SCHEDULE, axis_name="d", structure=jaxprune.Channel())
