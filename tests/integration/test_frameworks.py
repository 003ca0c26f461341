"""Training runs in Flax linen, Flax NNX and plain trees, and their checkpoints.

Every model has kernels that are pruned, and biases and a BatchNorm that are not. All use one
schedule; checkpoints are taken between two of its fires.
"""

import functools
import itertools
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

import jaxprune
from helpers import assert_dropped_are_plus_zero, by_path, half_up, n_dropped, on_device

FIRES = (1, 4, 7)
SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 7, 3)
TARGETS = (Fraction(0), Fraction(3, 4) * (1 - Fraction(1, 8)), Fraction(3, 4))
MIDDLE, N_STEPS = 6, 10
FORMS = ("chain", "inner")
X = on_device(np.random.default_rng(0).normal(size=(16, 4)))
Y = on_device(np.random.default_rng(1).normal(size=(16, 3)))
SIZES = {"fc/kernel": 24, "out/kernel": 18}  # the pruned leaves of every model in this file

every_form = pytest.mark.parametrize("form", FORMS)


@functools.cache
def optimizer(form, **kwargs):
    adam = optax.adamw(0.05, weight_decay=0.01)
    if form == "chain":
        return optax.chain(adam, jaxprune.prune(SCHEDULE, **kwargs))
    return jaxprune.prune(SCHEDULE, inner=adam, **kwargs)


def budget(size, step):
    """The budget after `step`, rounded half up."""
    target = max((t for fire, t in zip(FIRES, TARGETS, strict=True) if fire <= step), default=0)
    return half_up(target * size)


def assert_sparse(params, opt_state, step, sizes=SIZES):
    """Checks that every mask has its exact budget after `step`, and dropped weights are +0.0."""
    masks = by_path(jaxprune.get_masks(opt_state))
    assert masks.keys() == by_path(params).keys()
    assert n_dropped(masks) == {path: budget(sizes.get(path, 0), step) for path in masks}
    assert_dropped_are_plus_zero(params, masks)


def mse(prediction):
    return jnp.mean((prediction - Y) ** 2)


# Linen.


class LinenNet(nn.Module):
    boxed: bool = False

    @nn.compact
    def __call__(self, x, train=True):
        init = nn.initializers.lecun_normal()
        names = ((None, "model"), ("model", None)) if self.boxed else (None, None)
        inits = [nn.with_partitioning(init, n) if n else init for n in names]
        x = nn.Dense(6, kernel_init=inits[0], name="fc")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Dense(3, kernel_init=inits[1], name="out")(x)


class TrainState(train_state.TrainState):
    batch_stats: Any


@functools.cache
def linen_net(boxed=False):
    return LinenNet(boxed)


def linen_state(form, *, boxed=False, key=0, **kwargs):
    variables = linen_net(boxed).init(jax.random.key(key), X)
    state = TrainState.create(
        apply_fn=linen_net(boxed).apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optimizer(form, **kwargs),
    )
    return state.replace(step=jnp.zeros((), jnp.int32))  # flax starts with a Python int


@jax.jit
def linen_step(state):
    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, new = state.apply_fn(variables, X, mutable=["batch_stats"])
        return mse(prediction), new["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats)


@every_form
def test_a_linen_train_state_prunes_its_kernels(form):
    state = linen_state(form)
    start = by_path(state.batch_stats)
    for t in range(N_STEPS):
        state = linen_step(state)
        assert_sparse(state.params, state, t)
    jaxprune.check(state.params, state)
    assert jaxprune.get_state(state) is jaxprune.get_state(state.opt_state)
    assert all(np.all(x != start[path]) for path, x in by_path(state.batch_stats).items())


@every_form
def test_linen_partitioned_boxes_stay_on_params_and_masks(form):
    state = linen_state(form, boxed=True)
    specs = nn.get_partition_spec(state.params)
    assert specs["fc"]["kernel"] == jax.sharding.PartitionSpec(None, "model")
    for t in range(N_STEPS):
        state = linen_step(state)
        masks = jaxprune.get_state(state).masks
        for tree in (state.params, masks, jaxprune.apply_masks(state.params, state)):
            assert nn.get_partition_spec(tree) == specs
        assert_sparse(state.params, state, t)
    jaxprune.check(state.params, state)


@pytest.mark.parametrize("boxed", (False, True), ids=("plain", "boxed"))
def test_rules_see_the_same_linen_paths_with_and_without_boxes(boxed):
    state = linen_state("chain", boxed=boxed, exclude="out/kernel")
    for t in range(N_STEPS):
        state = linen_step(state)
        assert_sparse(state.params, state, t, {"fc/kernel": 24})


# NNX.


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.norm(self.fc(x))))


def nnx_pair(form, key=0, **kwargs):
    model = NnxNet(nnx.Rngs(key))
    return model, nnx.Optimizer(model, optimizer(form, **kwargs), wrt=nnx.Param)


@nnx.jit
def nnx_step(model, opt):
    opt.update(model, nnx.grad(lambda model: mse(model(X)))(model))
    return jaxprune.metrics(opt, per_leaf=True)


@every_form
def test_an_nnx_optimizer_prunes_its_kernels(form):
    model, opt = nnx_pair(form)
    start = by_path(nnx.state(model, nnx.BatchStat))
    for t in range(N_STEPS):
        metrics = nnx_step(model, opt)
        assert_sparse(nnx.state(model, nnx.Param), opt, t)
        n_zero = {path: budget(size, t) for path, size in SIZES.items()}
        assert metrics["prune/step"] == t + 1
        assert metrics["prune/n_zero"] == sum(n_zero.values())
        for path, n in n_zero.items():
            assert metrics[f"prune/sparsity/{path}"] == np.float32(n / SIZES[path])
    stats = by_path(nnx.state(model, nnx.BatchStat))
    assert all(np.all(x != start[path]) for path, x in stats.items())


def test_helpers_take_an_nnx_optimizer_and_the_params_of_its_model():
    model, opt = nnx_pair("chain", exclude="out/kernel")
    for _ in range(N_STEPS):
        nnx_step(model, opt)
    params = nnx.state(model, nnx.Param)
    jaxprune.check(params, opt)
    report = jaxprune.summarize(params, opt)
    assert report.n_zero == budget(24, N_STEPS)
    assert [leaf.path for leaf in report.leaves if leaf.n_zero] == ["fc/kernel"]
    planned = jaxprune.plan(params, SCHEDULE, exclude="out/kernel")
    assert [leaf.n_zero for leaf in planned.leaves] == [leaf.n_zero for leaf in report.leaves]

    dense = jax.tree.map(jnp.ones_like, params)
    with pytest.raises(ValueError, match="fc/kernel: 18 of 18 "):
        jaxprune.check(dense, opt)
    nnx.update(model, jaxprune.apply_masks(dense, opt))
    assert int(jnp.sum(model.fc.kernel[...] == 0)) == 18
    jaxprune.check(nnx.state(model, nnx.Param), opt)


# Plain trees.


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@every_form
def test_lists_tuples_named_tuples_and_nones_are_trees_like_any_other(form):
    rng = np.random.default_rng(2)
    params = {
        "layers": [Pair(on_device(rng.normal(size=(4, 6))), jnp.ones(6)), None],
        "out": (on_device(rng.normal(size=(6, 3))), jnp.zeros(3), ()),
        "none": None,
        "scale": jnp.ones(()),
    }

    def loss(params):
        (kernel, bias), _ = params["layers"]
        hidden = jnp.tanh(X @ kernel + bias)
        return mse(params["scale"] * hidden @ params["out"][0] + params["out"][1])

    tx = optimizer(form)
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    state = tx.init(params)
    for t in range(N_STEPS):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        assert_sparse(params, state, t, {"layers/0/kernel": 24, "out/0": 18})
        chex.assert_trees_all_equal_structs(params, updates, jaxprune.get_masks(state))
    jaxprune.check(params, state)


# Checkpoints.


class Case(NamedTuple):
    """A training run as one tree of arrays: how to begin it, to take a step, and to look inside.

    `from_params` starts from trained params without optimizer state; their zeros become the masks.
    """

    create: Callable[[int], Any]
    step: Callable[[Any], Any]
    params: Callable[[Any], Any]
    opt_state: Callable[[Any], Any]
    from_params: Callable[[Any], Any]


def linen_case(form, boxed=False):
    def create(key):
        return linen_state(form, boxed=boxed, key=key)

    def from_params(params):
        state, masks = create(1), jaxprune.masks_from_params(params)
        opt_state = optax.tree.set(state.opt_state, masks=masks)
        return state.replace(params=params, opt_state=opt_state)

    return Case(
        create=create,
        step=linen_step,
        params=lambda state: state.params,
        opt_state=lambda state: state.opt_state,
        from_params=from_params,
    )


def nnx_case(form):
    graphdef, _ = nnx.split(nnx_pair(form))

    def step(state):
        model, opt = nnx.merge(graphdef, state)
        nnx_step(model, opt)
        return nnx.state((model, opt))

    def from_params(params):
        model, opt = nnx_pair(form, key=1)
        nnx.update(model, params)
        opt.opt_state = optax.tree.set(opt.opt_state, masks=jaxprune.masks_from_params(params))
        return nnx.state((model, opt))

    return Case(
        create=lambda key: nnx.state(nnx_pair(form, key)),
        step=step,
        params=lambda state: nnx.state(nnx.merge(graphdef, state)[0], nnx.Param),
        opt_state=lambda state: nnx.merge(graphdef, state)[1],
        from_params=from_params,
    )


def orbax_round_trip(tree, fresh, path):
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", target)


def msgpack_round_trip(tree, fresh, path):
    (path / "state").write_bytes(flax.serialization.to_bytes(tree))
    return flax.serialization.from_bytes(fresh, (path / "state").read_bytes())


def pickle_round_trip(tree, fresh, path):
    if isinstance(tree, TrainState):  # its functions cannot be pickled
        parts = {
            name: getattr(tree, name) for name in ("step", "params", "opt_state", "batch_stats")
        }
        return fresh.replace(**pickle_round_trip(parts, None, path))
    (path / "state").write_bytes(pickle.dumps(jax.device_get(tree)))
    return pickle.loads((path / "state").read_bytes())


CASES = {
    "linen": linen_case,
    "linen-boxed": functools.partial(linen_case, boxed=True),
    "nnx": nnx_case,
}
ROUND_TRIPS = {
    "orbax": orbax_round_trip,
    "msgpack": msgpack_round_trip,
    "pickle": pickle_round_trip,
}
RESUMES = {  # flax writes no NNX state to msgpack
    f"{case}-{how}": (CASES[case], ROUND_TRIPS[how])
    for case, how in itertools.product(CASES, ROUND_TRIPS)
    if (case, how) != ("nnx", "msgpack")
}
SLOW = {("linen", "pickle"), ("linen-boxed", "msgpack"), ("linen-boxed", "pickle")}
every_resume = pytest.mark.parametrize(
    "case, round_trip",
    [
        pytest.param(*r, id=n, marks=[pytest.mark.slow] * (tuple(n.rsplit("-", 1)) in SLOW))
        for n, r in RESUMES.items()
    ],
)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def steps(case, tree, first, last):
    for t in range(first, last):
        tree = case.step(tree)
        assert_sparse(case.params(tree), case.opt_state(tree), t)
    return tree


def assert_identical(a, b):
    """The same structure, shapes, dtypes and bits."""
    chex.assert_trees_all_equal_structs(a, b)
    chex.assert_trees_all_equal_shapes_and_dtypes(a, b)
    chex.assert_trees_all_equal(a, b)


@functools.cache
def uninterrupted(make_case, form):
    """A case, its tree in mid-schedule, and its tree at the end; one run for all round trips."""
    case = make_case(form)
    middle = steps(case, case.create(0), 0, MIDDLE)
    return case, middle, steps(case, copied(middle), MIDDLE, N_STEPS)


def copied(tree):
    """With variables of its own: a step of NNX writes into those it is given."""
    return jax.tree.map(lambda x: x, tree)


@every_form
@every_resume
def test_a_run_resumes_in_mid_schedule_bit_for_bit(case, round_trip, form, tmp_path):
    case, middle, end = uninterrupted(case, form)
    restored = round_trip(middle, case.create(1), tmp_path)
    assert_identical(restored, middle)
    resumed = steps(case, restored, MIDDLE, N_STEPS)
    assert_identical(resumed, end)
    jaxprune.check(case.params(resumed), case.opt_state(resumed))


@every_form
@every_case
def test_params_restored_without_optimizer_state_keep_their_zeros(case, form):
    case, _, trained = uninterrupted(case, form)
    trained = copied(trained)
    masks = by_path(jaxprune.get_masks(case.opt_state(trained)))
    tree = case.from_params(case.params(trained))
    chex.assert_trees_all_equal(by_path(jaxprune.get_masks(case.opt_state(tree))), masks)
    for _ in range(N_STEPS):
        tree = case.step(tree)
        assert_sparse(case.params(tree), case.opt_state(tree), N_STEPS)
        chex.assert_trees_all_equal(by_path(jaxprune.get_masks(case.opt_state(tree))), masks)
    jaxprune.check(case.params(tree), case.opt_state(tree))
