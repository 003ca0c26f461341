"""More layers and libraries than `test_frameworks`, and every algorithm in every wrapper.

The laws are the same everywhere: after each step the masks hold the budget of the number of updates
counted so far, and what they drop is +0.0.
"""

from fractions import Fraction

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import (
    assert_dropped_are_plus_zero,
    by_path,
    half_up,
    n_dropped,
    on_device,
    quadratic,
)

FIRES = (1, 3, 4)
SCHEDULE = jaxprune.cubic_schedule(0.75, 1, 4, 2, initial_sparsity=0.25)
TARGETS = [Fraction(3, 4) - Fraction(1, 2) * Fraction(4 - fire, 3) ** 3 for fire in FIRES]
N_STEPS = 6


def target(n_updates):
    """The sparsity after a number of updates."""
    return max((s for fire, s in zip(FIRES, TARGETS, strict=True) if fire < n_updates), default=0)


def assert_sparse(params, opt_state, sizes, n_updates):
    """Checks budgets and zeros; `sizes` maps the paths of pruned leaves to their sizes."""
    masks = jaxprune.get_masks(opt_state)
    dropped = n_dropped(masks)
    assert dropped == {path: half_up(target(n_updates) * sizes.get(path, 0)) for path in dropped}
    assert_dropped_are_plus_zero(params, masks)


def chained(**kwargs):
    return optax.chain(optax.adam(0.05), jaxprune.prune(SCHEDULE, **kwargs))


# Linen layers.


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.scan(
            lambda layer, x, _: (nn.relu(layer(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return layer(nn.Dense(4, name="layers"), x, None)[0]


LINEN = {  # a layer, the rules for it, and the weights that are pruned
    "scan": (Scanned(), {"exclude": ".*bias"}, {"layers/kernel": 48}),
    "lstm": (
        nn.RNN(nn.LSTMCell(2)),
        {},
        {f"cell/{i}{g}/kernel": n for i, n in (("i", 8), ("h", 4)) for g in "ifgo"},
    ),
    "attention": (  # its biases have two axes: (heads, features)
        nn.MultiHeadDotProductAttention(num_heads=2),
        {"exclude": ".*bias"},
        {f"{name}/kernel": 16 for name in ("query", "key", "value", "out")},
    ),
}


@pytest.mark.parametrize("layer, rules, sizes", LINEN.values(), ids=LINEN)
def test_a_train_state_prunes_the_kernels_of_linen_layers(layer, rules, sizes, getkey):
    x = jax.random.normal(getkey(), (2, 3, 4), jnp.float32)
    params = jax.jit(layer.init)(getkey(), x)["params"]
    state = train_state.TrainState.create(apply_fn=layer.apply, params=params, tx=chained(**rules))
    state = state.replace(step=jnp.zeros((), jnp.int32))  # flax starts with a Python int

    @jax.jit
    def step(state):
        grads = jax.grad(lambda p: jnp.mean((state.apply_fn({"params": p}, x) - 1) ** 2))
        return state.apply_gradients(grads=grads(state.params))

    for t in range(N_STEPS):
        state = step(state)
        assert_sparse(state.params, state, sizes, t + 1)
    jaxprune.check(state.params, state)
    pruned = {leaf.path for leaf in jaxprune.plan(params, SCHEDULE, **rules).leaves if leaf.n_zero}
    assert pruned == set(sizes)


class WithNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))


def test_the_params_of_a_batch_norm_are_not_pruned_and_its_statistics_are_no_params(getkey):
    variables = WithNorm().init(getkey(), jnp.ones((2, 4)))
    masks = jaxprune.get_masks(chained().init(variables["params"]))
    norm = {"BatchNorm_0/scale", "BatchNorm_0/bias"}
    assert set(by_path(masks)) == {"Dense_0/kernel", "Dense_0/bias"} | norm
    plan = jaxprune.plan(variables["params"], 0.5)
    assert [leaf.path for leaf in plan.leaves if leaf.n_zero] == ["Dense_0/kernel"]


# NNX.


class Stack(nnx.Module):
    """Three layers in one, run by `nnx.scan`."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs):
            return nnx.Linear(4, 4, rngs=rngs)

        self.layers = create(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return nnx.relu(layer(x))

        return forward(self.layers, x)


@nnx.jit
def nnx_step(model, opt, x):
    grads = nnx.grad(lambda model: jnp.mean((model(x) - 1) ** 2), argnums=nnx.DiffState(0, opt.wrt))
    opt.update(model, grads(model))


def assert_nnx_is_pruned(model, opt, sizes, x):
    for t in range(N_STEPS):
        nnx_step(model, opt, x)
        assert_sparse(nnx.state(model, opt.wrt), opt, sizes, t + 1)
    jaxprune.check(nnx.state(model, opt.wrt), opt)


def test_a_scanned_nnx_stack_is_pruned(getkey):
    model = Stack(nnx.Rngs(0))
    opt = nnx.Optimizer(model, chained(exclude=".*bias"), wrt=nnx.Param)
    assert_nnx_is_pruned(model, opt, {"layers/kernel": 48}, jax.random.normal(getkey(), (2, 4)))


def test_lora_params_are_pruned_alone_and_the_frozen_kernel_stays(getkey):
    model = nnx.LoRALinear(4, 6, lora_rank=2, rngs=nnx.Rngs(0))
    model.lora.lora_b[...] = jax.random.normal(getkey(), (2, 6), jnp.float32)  # it starts at zero
    frozen = np.asarray(model.kernel[...])
    opt = nnx.Optimizer(model, chained(include=".*lora_[ab]"), wrt=nnx.LoRAParam)
    sizes = {"lora/lora_a": 8, "lora/lora_b": 12}
    assert_nnx_is_pruned(model, opt, sizes, jax.random.normal(getkey(), (2, 4)))
    np.testing.assert_array_equal(model.kernel[...], frozen)


def test_the_masks_of_a_sharded_nnx_model_are_sharded_like_it_and_stay_so(getkey):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    columns, whole = NamedSharding(mesh, P(None, "model")), NamedSharding(mesh, P())
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    state = nnx.state(model)
    nnx.update(
        model, jax.tree.map(lambda x: jax.device_put(x, columns if x.ndim > 1 else whole), state)
    )
    opt = nnx.Optimizer(model, chained(), wrt=nnx.Param)
    x = jax.device_put(jax.random.normal(getkey(), (2, 8)), whole)
    for t in range(N_STEPS):
        nnx_step(model, opt, x)
        mask = jaxprune.get_masks(opt)["kernel"][...]
        assert mask.sharding.is_equivalent_to(columns, 2)
        assert_sparse(nnx.state(model, nnx.Param), opt, {"kernel": 32}, t + 1)


@pytest.mark.skip_in("disable_jit", reason="constraints on shardings are for compiled code")
def test_a_model_made_by_with_partitioning_is_pruned_where_its_metadata_puts_it(getkey):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model"))

    @nnx.jit
    def create():
        model = nnx.Linear(8, 4, kernel_init=init, rngs=nnx.Rngs(0))
        state = nnx.state(model)
        specs = nnx.get_partition_spec(state)
        nnx.update(model, jax.lax.with_sharding_constraint(state, specs))
        return model, nnx.Optimizer(model, chained(), wrt=nnx.Param)

    with jax.set_mesh(mesh):
        model, opt = create()
        columns = NamedSharding(mesh, P(None, "model"))
        x = jax.random.normal(getkey(), (2, 8))
        for t in range(N_STEPS):
            nnx_step(model, opt, x)
            assert model.kernel[...].sharding.is_equivalent_to(columns, 2)
            assert jaxprune.get_masks(opt)["kernel"][...].sharding.is_equivalent_to(columns, 2)
            assert_sparse(nnx.state(model, nnx.Param), opt, {"kernel": 32}, t + 1)
        jaxprune.check(nnx.state(model, nnx.Param), opt)


# Optional libraries.


def test_an_equinox_model_is_pruned_through_its_filtered_tree(getkey):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 3, 6, 1, key=getkey())
    x = jax.random.normal(getkey(), (5, 4))
    tx = chained()
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, opt_state):
        grads = eqx.filter_grad(lambda model: jnp.mean((jax.vmap(model)(x) - 1) ** 2))(model)
        params = eqx.filter(model, eqx.is_inexact_array)  # None at the functions of the model
        updates, opt_state = tx.update(grads, opt_state, params)
        return eqx.apply_updates(model, updates), opt_state

    sizes = {"layers/0/weight": 24, "layers/1/weight": 18}
    for t in range(N_STEPS):
        model, opt_state = step(model, opt_state)
        assert_sparse(eqx.filter(model, eqx.is_inexact_array), opt_state, sizes, t + 1)
    jaxprune.check(eqx.filter(model, eqx.is_inexact_array), opt_state)


def test_a_haiku_model_is_pruned(getkey):
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 3])(x)))
    x = jax.random.normal(getkey(), (5, 4))
    params = net.init(getkey(), x)
    tx = chained()
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state):
        grads = jax.grad(lambda p: jnp.mean((net.apply(p, x) - 1) ** 2))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    sizes = {"mlp/~/linear_0/w": 24, "mlp/~/linear_1/w": 18}
    for t in range(N_STEPS):
        params, opt_state = step(params, opt_state)
        assert_sparse(params, opt_state, sizes, t + 1)
    jaxprune.check(params, opt_state)


def linen_params():
    return nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 4)))["params"]


def boxed_params():
    init = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    return nn.Dense(3, kernel_init=init).init(jax.random.key(0), jnp.ones((1, 4)))["params"]


def equinox_params():
    eqx = pytest.importorskip("equinox")
    return eqx.filter(eqx.nn.Linear(4, 3, key=jax.random.key(0)), eqx.is_inexact_array)


def haiku_params():
    hk = pytest.importorskip("haiku")
    net = hk.transform(lambda x: hk.Linear(3, name="fc")(x))
    return net.init(jax.random.key(0), jnp.ones((1, 4)))


PLANNED = {  # how params are made, the path of the pruned leaf in `plan`, and its shape
    "plain": (lambda: [(jnp.ones((4, 3)), jnp.ones(3))], "0/0", "4x3"),
    "linen": (linen_params, "kernel", "4x3"),
    "linen-boxed": (boxed_params, "kernel", "4x3"),
    "nnx": (lambda: nnx.state(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Param), "kernel", "4x3"),
    "equinox": (equinox_params, "weight", "3x4"),
    "haiku": (haiku_params, "fc/w", "4x3"),
}


@pytest.mark.parametrize("create, path, shape", PLANNED.values(), ids=PLANNED)
def test_plan_prints_what_it_matched_and_what_it_did_not(create, path, shape):
    printed = str(jaxprune.plan(create(), 0.75, overrides={path: 0.5, f"{path}|": 0.9}))
    (pruned,) = [line.split() for line in printed.splitlines() if line.startswith(f"{path} ")]
    assert pruned[:2] + pruned[3:6] == [path, shape, "12", "6", "50.00%"]
    assert f"'{path}'" in " ".join(pruned)  # the rule that set it
    assert "1-D" in printed
    assert f"unused: overrides: '{path}|'" in printed


# Every algorithm inside every wrapper.


def rigl(opt):
    return jaxprune.rigl(0.75, end_step=5, every=2, inner=opt)


def set_(opt):
    return jaxprune.set_(0.75, end_step=5, every=2, inner=opt)


KINDS = {
    "rigl": rigl,
    "set": set_,
    "packed": lambda opt: optax.chain(opt, jaxprune.prune(SCHEDULE, packed=True)),
    "hold": lambda opt: jaxprune.prune(SCHEDULE, inner=opt, regrow="hold"),
    "train": lambda opt: jaxprune.prune(SCHEDULE, inner=opt, regrow="train"),
}
# Variants of other kinds, slow where each kind is compiled for itself.
LIKE_OTHERS = ("hold", "train", "set")


def few(kinds):
    return [pytest.param(k, marks=[pytest.mark.slow] * (k in LIKE_OTHERS)) for k in kinds]


FULL = {"fc": True, "rest": False}


def sam(tx):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    outer = optax.contrib.sam(tx, adversary, sync_period=2, opaque_mode=True)
    grad_fn = lambda p, _: jax.grad(quadratic)(p)
    return optax.GradientTransformation(
        outer.init, lambda g, s, p: outer.update(g, s, p, grad_fn=grad_fn)
    )


WRAPPERS = {  # a wrapper, and the number of real updates after some calls
    "alone": (lambda tx: tx, lambda t: t),
    "multi-steps": (lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(), lambda t: t // 2),
    "masked": (lambda tx: optax.chain(optax.masked(tx, FULL)), lambda t: t),
    "partition": (
        lambda tx: optax.partition({"a": tx, "b": optax.sgd(0.1)}, {"fc": "a", "rest": "b"}),
        lambda t: t,
    ),
    "sam": (sam, lambda t: t),
    "apply-if-finite": (lambda tx: optax.apply_if_finite(tx, 3), lambda t: t - (t > 2)),
}


def small_params():
    rng = np.random.default_rng(0)
    leaf = lambda *shape: on_device(rng.normal(size=shape))
    return {"fc": {"kernel": leaf(4, 10), "bias": leaf(10)}, "rest": leaf(3)}


def n_zero(kind, n_updates):
    return 30 if kind in ("rigl", "set") else half_up(40 * target(n_updates))


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ("rigl", "packed", "hold"))
def test_every_kind_of_pruning_keeps_its_laws_inside_every_wrapper(kind, wrapper):
    wrap, n_updates = WRAPPERS[wrapper]
    tx = wrap(KINDS[kind](optax.sgd(0.1, momentum=0.5)))
    params = small_params()
    state = tx.init(params)
    params = jaxprune.apply_masks(params, state)

    def step(carry, t):
        params, state = carry
        nan = jnp.where((t == 2) & (wrapper == "apply-if-finite"), jnp.nan, 0.0)
        grads = jax.tree.map(lambda g: g + nan, jax.grad(quadratic)(params))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        kernel, mask = params["fc"]["kernel"], jaxprune.get_masks(state, params)["fc"]["kernel"]
        n_moved = jnp.sum(~mask & (jax.lax.bitcast_convert_type(kernel, jnp.uint32) != 0))
        return (params, state), (jnp.sum(~mask), n_moved)

    n_steps = 2 * N_STEPS
    carry, (dropped, moved) = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(n_steps)))(
        (params, state)
    )
    assert dropped.tolist() == [n_zero(kind, n_updates(t + 1)) for t in range(n_steps)]
    chex.assert_tree_all_finite(carry[0])
    if kind != "hold":
        assert moved.tolist() == [0] * n_steps


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_trains_a_train_state(kind):
    tx = KINDS[kind](optax.sgd(0.1))
    state = train_state.TrainState.create(apply_fn=None, params=small_params(), tx=tx)
    state = state.replace(params=jaxprune.apply_masks(state.params, state))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(quadratic)(state.params)))
    for t in range(N_STEPS):
        state = step(state)
        masks = jaxprune.get_masks(state)
        assert int(jnp.sum(~masks["fc"]["kernel"])) == n_zero(kind, t + 1)
        if kind not in ("hold", "train"):
            assert_dropped_are_plus_zero(state.params, jaxprune.get_masks(state))


@pytest.mark.parametrize("kind", few(KINDS))
def test_every_algorithm_trains_an_nnx_model(kind, getkey):
    model = nnx.Linear(4, 10, rngs=nnx.Rngs(0))
    opt = nnx.Optimizer(model, KINDS[kind](optax.sgd(0.1)), wrt=nnx.Param)
    nnx.update(model, jaxprune.apply_masks(nnx.state(model, nnx.Param), opt))
    x = jax.random.normal(getkey(), (2, 4))
    for t in range(N_STEPS):
        nnx_step(model, opt, x)
        assert int(np.sum(~by_path(jaxprune.get_masks(opt))["kernel"])) == n_zero(kind, t + 1)
        if kind not in ("hold", "train"):
            assert_dropped_are_plus_zero(nnx.state(model, nnx.Param), jaxprune.get_masks(opt))


# Properties that optax tests on its own optimizers.


CONFORMING = {
    "chain": lambda opt: optax.chain(opt, jaxprune.prune(SCHEDULE)),
    "inner": lambda opt: jaxprune.prune(SCHEDULE, inner=opt),
    **KINDS,
}
every_conforming = pytest.mark.parametrize("create", CONFORMING.values(), ids=CONFORMING)


@pytest.mark.parametrize("kind", LIKE_OTHERS)  # test_conformance.py has the others
def test_an_update_keeps_every_type_of_the_state_and_compiles_once(kind):
    params = small_params()
    tx = KINDS[kind](optax.sgd(0.5, momentum=0.5))
    traces = []
    update = jax.jit(lambda g, s, p: (traces.append(1), tx.update(g, s, p))[1])
    state = tx.init(params)
    for _ in range(3):
        _, new = update(params, state, params)
        chex.assert_trees_all_equal_structs(new, state)
        assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)  # weak types too
        state = new
    assert jax.config.jax_disable_jit or len(traces) == 1


@pytest.mark.parametrize("kind", few(["chain", "inner", "hold", "train", "rigl", "set"]))
def test_masks_are_sharded_like_their_params_from_init_on(kind):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("d"))
    params = {"kernel": jax.device_put(small_params()["fc"]["kernel"], rows)}
    tx = CONFORMING[kind](optax.sgd(0.5, momentum=0.5))
    state = tx.init(params)
    for _ in range(3):
        assert jaxprune.get_state(state).masks["kernel"].sharding.is_equivalent_to(rows, 2)
        _, state = jax.jit(tx.update)(params, state, params)


@pytest.mark.slow
@every_conforming
def test_an_update_is_the_same_inside_and_outside_jit(create):
    tx = create(optax.sgd(0.5))  # products with a power of two are exact
    update = jax.jit(lambda s, p: tx.update(p, s, p))
    params = small_params()
    state = tx.init(params)
    for _ in range(N_STEPS):
        updates, new = tx.update(params, state, params)
        chex.assert_trees_all_equal(update(state, params), (updates, new))
        params, state = optax.apply_updates(params, updates), new


@pytest.mark.parametrize("kind", ("chain", "rigl"))
def test_a_factory_that_prunes_takes_injected_hyperparams(kind):
    create = CONFORMING[kind]
    tx = optax.inject_hyperparams(lambda rate: create(optax.sgd(rate)))(rate=0.5)
    plain = create(optax.sgd(0.5))
    params = small_params()
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    _, expected = jax.jit(plain.update)(params, plain.init(params), params)
    chex.assert_trees_all_equal(jaxprune.get_masks(state), jaxprune.get_masks(expected))


def test_lbfgs_tunes_a_sparse_network_whose_loss_is_that_of_masked_params():
    params, masks = jaxprune.prune_params(small_params(), 0.5)
    tx = optax.chain(optax.lbfgs(), jaxprune.prune(jaxprune.one_shot_schedule(0.0)))
    state = jaxprune.set_masks(tx.init(params), masks)

    def loss(params):
        return quadratic(jaxprune.apply_masks(params, masks)) ** 2

    @jax.jit
    def step(params, state):
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(N_STEPS):
        params, state, value = step(params, state)
        values.append(float(value))
        assert_dropped_are_plus_zero(params, jaxprune.get_masks(state))
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    chex.assert_trees_all_equal(jaxprune.get_masks(state), masks)


def test_linen_variables_with_statistics_are_refused():
    variables = {"params": {"kernel": jnp.ones((4, 4))}, "batch_stats": {"mean": jnp.ones((2, 4))}}
    for call in (
        lambda: jaxprune.prune(SCHEDULE).init(variables),
        lambda: jaxprune.plan(variables, 0.5),
        lambda: jaxprune.prune_params(variables, 0.5),
    ):
        with pytest.raises(ValueError, match=r"batch_stats: .*Pass variables\['params'\]"):
            call()
