"""Every optimizer of optax, then its wrappers and helpers, keep the promises of pruning.

One table holds a constructor per optimizer; optax itself says which names it must have. Each
optimizer is compiled once, with both forms of `prune` side by side, one with float32 and the other
with bfloat16 leaves, and the tests of the table read what those 20 steps left behind. Which form
has which dtype alternates along the table; a slow test runs every optimizer the other way round.
"""

import functools
import inspect
import re
import warnings
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jaxprune
from helpers import (
    assert_dropped_are_plus_zero,
    bits,
    by_path,
    half_up,
    n_dropped,
    on_device,
    quadratic,
    says,
)

BEGIN, END, EVERY = 2, 9, 3  # fires at 2, 5, 8 and, off the grid, 9
INITIAL, FINAL = Fraction(1, 4), Fraction(3, 4)
SCHEDULE = jaxprune.cubic_schedule(0.75, BEGIN, END, EVERY, initial_sparsity=0.25)
N_STEPS = 20
FORMS = ("chain", "inner")
DTYPES = ("float32", "bfloat16")


def with_prune(form, opt, schedule=SCHEDULE):
    if form == "chain":
        return optax.chain(opt, jaxprune.prune(schedule))
    return jaxprune.prune(schedule, inner=opt)


def budget(size, step, final=FINAL):
    """The budget after `step`, by the formula of the paper: from a quarter to `final`."""
    if step < BEGIN:
        return 0
    fire = END if step >= END else BEGIN + (step - BEGIN) // EVERY * EVERY
    target = final + (INITIAL - final) * Fraction(END - fire, END - BEGIN) ** 3
    return half_up(target * size)


def make_params(dtype="float32", seed=0):
    """Leaves that are pruned (with ties, constant, empty) and leaves that are not."""
    rng = np.random.default_rng(seed)
    kernel = np.round(4 * rng.normal(size=(8, 5))) / 4
    kernel[2:4] = 0.5
    leaves = {
        "fc": {"kernel": kernel, "bias": rng.normal(size=5)},
        "constant": np.full((3, 4), 0.5),
        "empty": np.zeros((0, 3)),
        "scale": np.full((), 2.0),
    }
    return jax.tree.map(lambda x: on_device(x, dtype), leaves)


SIZES = {"fc/kernel": 40, "constant": 12}  # the weights that are pruned of it


def assert_budget(masks, step, sizes=SIZES):
    dropped = n_dropped(masks)
    assert dropped == {path: budget(sizes.get(path, 0), step) for path in dropped}


def stepper(tx, grads=lambda params, t: jax.grad(quadratic)(params)):
    """One update, applied: `((params, state), t) -> ((params, state), (params, masks))`."""

    def step(carry, t):
        params, state = carry
        updates, state = tx.update(grads(params, t), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, jaxprune.get_masks(state))

    return step


@functools.cache
def scanner(tx, **kwargs):
    return jax.jit(functools.partial(jax.lax.scan, stepper(tx, **kwargs)))


@functools.cache
def jitted_stepper(tx):
    return jax.jit(stepper(tx))


@functools.cache
def adam(form):
    """The optimizer of all tests that need no particular one: it is compiled once."""
    return with_prune(form, optax.adam(0.1))


def train(tx, params, n_steps=N_STEPS, *, state=None, **kwargs):
    """Params and state after `n_steps`, and a list of the params and masks after each of them."""
    carry = params, tx.init(params) if state is None else state
    (params, state), history = scanner(tx, **kwargs)(carry, jnp.arange(n_steps))
    history = jax.tree.map(np.asarray, history)
    return params, state, [jax.tree.map(lambda x, t=t: x[t], history) for t in range(n_steps)]


def assert_sparse_at_every_step(history, step_of=lambda t: t, **kwargs):
    for t, (params, masks) in enumerate(history):
        assert_budget(masks, step_of(t), **kwargs)
        assert_dropped_are_plus_zero(params, masks)


def _first_step_of_dog():
    new = "init_step" in inspect.signature(optax.contrib.dog).parameters
    return {"init_step": ("learning_rate", 0.1)} if new else {"init_learning_rate": 0.1}


# The table. Learning rates are large enough to change bfloat16 weights at every step.

ALIASES = {
    "adabelief": lambda: optax.adabelief(0.1),
    "adadelta": lambda: optax.adadelta(10.0),
    "adafactor": lambda: optax.adafactor(0.1),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.1),
    "adamax": lambda: optax.adamax(0.1),
    "adamaxw": lambda: optax.adamaxw(0.1, weight_decay=0.1),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adan": lambda: optax.adan(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "fromage": lambda: optax.fromage(0.1),
    "lamb": lambda: optax.lamb(0.1, weight_decay=0.1),
    "lars": lambda: optax.lars(10.0, weight_decay=0.1),
    "lbfgs": lambda: optax.lbfgs(),
    "lion": lambda: optax.lion(0.1),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "novograd": lambda: optax.novograd(0.1),
    "optimistic_adam": lambda: optax.optimistic_adam(0.1),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(0.1),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.1),
    "polyak_sgd": lambda: optax.polyak_sgd(),
    "radam": lambda: optax.radam(0.1),
    "rmsprop": lambda: optax.rmsprop(0.1, momentum=0.5),
    "rprop": lambda: optax.rprop(0.1),
    "sgd": lambda: optax.sgd(0.1, momentum=0.5),
    "sign_sgd": lambda: optax.sign_sgd(0.1),
    "signum": lambda: optax.signum(0.1),
    "sm3": lambda: optax.sm3(0.1),
    "yogi": lambda: optax.yogi(0.1),
}
CONTRIB = {
    "acprop": lambda: optax.contrib.acprop(0.1),
    "ademamix": lambda: optax.contrib.ademamix(0.1),
    "adopt": lambda: optax.contrib.adopt(0.1),
    "cocob": lambda: optax.contrib.cocob(alpha=1.0),
    "dadapt_adamw": lambda: optax.contrib.dadapt_adamw(1.0, estim_lr0=0.1),
    "dog": lambda: optax.contrib.dog(1.0, **_first_step_of_dog()),
    "dowg": lambda: optax.contrib.dowg(1.0, init_estim_sq_dist=0.1),
    "galore": lambda: optax.contrib.galore(0.1, rank=2),
    "madgrad": lambda: optax.contrib.madgrad(0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1), s_init=0.1),
    "momo": lambda: optax.contrib.momo(1.0),
    "momo_adam": lambda: optax.contrib.momo_adam(1.0),
    "muon": lambda: optax.contrib.muon(0.1),
    "prodigy": lambda: optax.contrib.prodigy(1.0, estim_lr0=0.1),
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    "sam": lambda: optax.contrib.sam(
        optax.adam(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.1)), opaque_mode=True
    ),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(0.1),
    "schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(0.1),
    "simplified_ademamix": lambda: optax.contrib.simplified_ademamix(0.1),
    "sophia": lambda: optax.contrib.sophia(0.1),
    "split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
}
TABLE = ALIASES | CONTRIB
# What else optax.contrib offers: links for chains, which are no optimizers by themselves, and one
# whose gradients are per example (tested below).
PARTS = {
    *("differentially_private_aggregate", "dpsgd", "hutchinson_estimator_diag_hessian"),
    *("normalize", "schedule_free_eval_params"),
}
CANNOT = {
    "muon": ("empty",),
    "sm3": ("empty", "scale"),
}  # leaves on which they fail without pruning, too


def test_every_optimizer_of_optax_is_in_the_table():
    # A name that fails here is new in optax: add it to the table and look at what it does.
    home = optax.adam.__module__
    public = {n for n, f in vars(optax).items() if getattr(f, "__module__", None) == home}
    assert {"sgd", "adamw", "lbfgs"} <= public <= set(ALIASES)
    contrib = {n for n, f in vars(optax.contrib).items() if inspect.isfunction(f)}
    parts = PARTS | {n for n in contrib if n.startswith("scale_by_")}
    assert {"muon", "prodigy"} <= contrib - parts <= set(CONTRIB)


@functools.cache
def twenty_steps(name, dtypes):
    """The results of 20 jitted steps of both forms, whose params are of these dtypes.

    The history, the last params and state by form, and how often the step was traced. The history
    is, by form, a list of steps, each a dict of flat trees: the `params` and `masks` after it, and
    for the chain the `updates` it emitted and `plain`: what the optimizer alone makes of its input.
    """
    namespace = optax.contrib if name in CONTRIB else optax
    if not hasattr(namespace, name):
        pytest.skip(f"optax {optax.__version__} has no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # optimistic_adam
        opt = TABLE[name]()
    plain = []  # what the optimizer made of its input, of the chain that is being traced
    spy = optax.stateless(lambda updates, _: plain.append(updates) or updates)
    txs = {"chain": with_prune("chain", optax.chain(opt, spy)), "inner": with_prune("inner", opt)}
    params = {form: make_params(dtype) for form, dtype in zip(FORMS, dtypes, strict=True)}
    for tree in params.values():
        for leaf in ("constant", *CANNOT.get(name, ())):  # fewer leaves compile faster
            del tree[leaf]
    carry = {form: (params[form], tx.init(params[form])) for form, tx in txs.items()}
    if name == "lbfgs":  # its first state is weakly typed: two traces, without pruning too
        carry = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), carry)
    traces = []

    @jax.jit
    def step(carry):
        traces.append(name)
        out, seen = {}, {}
        for form, tx in txs.items():
            params, state = carry[form]
            value, grads = jax.value_and_grad(quadratic)(params)
            extra = {"value": value, "grad": grads, "value_fn": quadratic}
            if name == "sam":
                extra = {"grad_fn": lambda p, _: jax.grad(quadratic)(p)}
            if name == "sophia":
                extra = {"obj_fn": quadratic}
            updates, new_state = tx.update(grads, state, params, **extra)
            new_params = optax.apply_updates(params, updates)
            out[form] = new_params, new_state
            seen[form] = {"params": new_params, "masks": jaxprune.get_masks(new_state)}
            if form == "chain":
                seen[form] |= {"updates": updates, "plain": plain.pop()}
        return out, seen

    history = {form: [] for form in FORMS}
    for _ in range(N_STEPS):
        carry, seen = step(carry)
        for form in FORMS:
            history[form].append({what: by_path(tree) for what, tree in seen[form].items()})
    return history, carry, len(traces)


def dtypes_of(name, turned=False):
    """The dtypes of both forms: every optimizer meets both, every form each of them in turn."""
    return DTYPES[:: -1 if (list(TABLE).index(name) + turned) % 2 else 1]


def run_of(name, form):
    """The dtype and the history of a form, in the run that is not slow."""
    dtypes = dtypes_of(name)
    return dtypes[FORMS.index(form)], twenty_steps(name, dtypes)[0][form]


ALWAYS = {*ALIASES, "muon", "sam", "schedule_free_adamw"}
# The scope keeps the tests of an optimizer side by side: one worker compiles it, and only once.
every_optimizer = pytest.mark.parametrize(
    "name",
    [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in TABLE],
    scope="module",
)
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@every_form
@every_optimizer
def test_dropped_weights_are_plus_zero_after_every_step(name, form):
    assert_dropped_at_every_step(*run_of(name, form))


def assert_dropped_at_every_step(dtype, history):
    for seen in history:
        assert {x.dtype.name for x in seen["params"].values()} == {dtype}
        assert_dropped_are_plus_zero(seen["params"], seen["masks"])


@every_form
@every_optimizer
def test_masks_hold_the_exact_budget_after_every_step(name, form):
    assert_budget_at_every_step(*run_of(name, form))


def assert_budget_at_every_step(dtype, history):
    for t, seen in enumerate(history):
        assert_budget(seen["masks"], t)


@every_optimizer
def test_in_a_chain_kept_and_unpruned_updates_are_those_of_the_optimizer(name):
    assert_kept_updates_are_plain(*run_of(name, "chain"))


def assert_kept_updates_are_plain(dtype, history):
    for seen in history:
        for path, mask in seen["masks"].items():
            got, plain = seen["updates"][path], seen["plain"][path]
            np.testing.assert_array_equal(got[mask], plain[mask].astype(got.dtype), err_msg=path)


@every_form
@every_optimizer
def test_every_weight_that_is_kept_has_been_trained(name, form):
    assert_kept_are_trained(*run_of(name, form))


def assert_kept_are_trained(dtype, history):
    start = by_path(make_params(dtype))
    for path, mask in history[-1]["masks"].items():
        seen = np.stack([start[path], *(at["params"][path] for at in history)]).astype(np.float32)
        assert np.all(np.isfinite(seen)), path
        assert np.all(np.ptp(seen, axis=0)[mask] > 0), path


@every_form
@every_optimizer
def test_check_passes_after_every_step(name, form):
    jaxprune.check(*twenty_steps(name, dtypes_of(name))[1][form])


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
@every_optimizer
def test_both_forms_need_one_trace(name):
    assert twenty_steps(name, dtypes_of(name))[2] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_with_the_dtypes_the_other_way_round_the_same_is_true(name):
    dtypes = dtypes_of(name, turned=True)
    history, last, n_traces = twenty_steps(name, dtypes)
    assert_kept_updates_are_plain(dtypes[0], history["chain"])
    for form, dtype in zip(FORMS, dtypes, strict=True):
        assert_dropped_at_every_step(dtype, history[form])
        assert_budget_at_every_step(dtype, history[form])
        assert_kept_are_trained(dtype, history[form])
        jaxprune.check(*last[form])
    assert n_traces == 1 or jax.config.jax_disable_jit


def test_gradients_per_example_are_aggregated_before_they_are_pruned():
    params = {"kernel": make_params()["fc"]["kernel"], "bias": jnp.ones(5)}
    grads = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)  # of two examples
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what dpsgd passes on
        dpsgd = optax.contrib.dpsgd(0.1, 1.0, 0.1, 0)
    aggregate = optax.contrib.differentially_private_aggregate(1.0, 0.1, 0)
    schedule = jaxprune.one_shot_schedule(0.5)
    for tx in (
        optax.chain(dpsgd, jaxprune.prune(schedule)),
        optax.chain(aggregate, jaxprune.prune(schedule, inner=optax.sgd(0.1))),
    ):
        updates, state = tx.update(grads, tx.init(params), params)
        new = optax.apply_updates(params, updates)
        assert_dropped_are_plus_zero(new, jaxprune.get_masks(state))
        jaxprune.check(new, state)
    tx = jaxprune.prune(schedule, inner=dpsgd)
    with pytest.raises(ValueError, match=says("kernel:", "(2, 8, 5)")):
        tx.update(grads, tx.init(params), params)


# Accumulation and skipping: which updates the schedule counts.


@every_form
def test_multi_steps_outside_counts_real_updates(form):
    tx = optax.MultiSteps(with_prune(form, optax.adam(0.1)), 3).gradient_transformation()
    params, state, history = train(tx, make_params(), 3 * N_STEPS)
    assert_sparse_at_every_step(history, step_of=lambda micro: (micro + 1) // 3 - 1)
    assert jaxprune.get_state(state).prune_step == N_STEPS
    jaxprune.check(params, state)


@every_form
def test_multi_steps_inside_leaves_the_schedule_to_count_micro_steps(form):
    opt = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    params, state, history = train(with_prune(form, opt), make_params())
    assert_sparse_at_every_step(history)
    assert jaxprune.get_state(state).prune_step == N_STEPS
    assert optax.tree.get(state, "gradient_step") == N_STEPS // 3
    jaxprune.check(params, state)


NAN_STEPS = np.array([1, BEGIN, 6])  # before the first fire, at it, and between two


def grads_with_nans(params, t):
    nan = jnp.where(jnp.any(t == NAN_STEPS), jnp.nan, 0.0)
    return jax.tree.map(lambda g: g + nan, jax.grad(quadratic)(params))


@every_form
def test_apply_if_finite_outside_skips_steps_of_the_schedule_as_well(form):
    tx = optax.apply_if_finite(with_prune(form, optax.adam(0.1)), 3)
    params, state, history = train(tx, make_params(), grads=grads_with_nans)
    assert_sparse_at_every_step(history, step_of=lambda t: t - np.sum(t >= NAN_STEPS))
    assert jaxprune.get_state(state).prune_step == N_STEPS - len(NAN_STEPS)
    chex.assert_tree_all_finite(params)
    jaxprune.check(params, state)


def test_apply_if_finite_inside_skips_the_optimizer_and_not_the_schedule():
    tx = with_prune("inner", optax.apply_if_finite(optax.adam(0.1), 3))
    params, state, history = train(tx, make_params(), grads=grads_with_nans)
    assert_sparse_at_every_step(history)
    chex.assert_tree_all_finite(params)
    jaxprune.check(params, state)


@pytest.mark.skip_in("debug_nans", reason="gradients are not finite on purpose")
@pytest.mark.parametrize("bad", (jnp.nan, jnp.inf, -jnp.inf))
def test_accumulated_scores_leave_out_increments_that_are_not_finite(bad):
    inner = optax.apply_if_finite(optax.sgd(0.1), 3)
    score = jaxprune.Accumulated("sum of gradients", lambda params, grads: grads)
    tx = jaxprune.prune(jaxprune.one_shot_schedule(0.5, step=3), inner=inner, score=score)
    params = {"w": jnp.ones((1, 4))}
    state = tx.init(params)
    rows = ([1.0, 2.0, 3.0, 4.0], [bad, 1.0, bad, 1.0], [8.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    for row in rows:
        updates, state = tx.update({"w": jnp.array([row])}, state, params)
        params = optax.apply_updates(params, updates)
    assert state.score_state["w"].tolist() == [[9.0, 4.0, 4.0, 6.0]]
    assert jaxprune.get_masks(state)["w"].tolist() == [[True, False, False, True]]
    jaxprune.check(params, state, done=True)


# Choosing and changing optimizers.


def test_masked_prune_sees_only_its_leaves_and_the_helpers_find_them():
    chosen = {"fc": True, "constant": False, "empty": True, "scale": False}
    tx = optax.chain(optax.adam(0.1), optax.masked(jaxprune.prune(SCHEDULE), chosen))
    params, state, history = train(tx, make_params())
    for t, (p, masks) in enumerate(history):
        assert set(by_path(masks)) == {"fc/kernel", "fc/bias", "empty"}
        assert_budget(masks, t)
        assert_dropped_are_plus_zero({"fc": p["fc"]}, {"fc": masks["fc"]})
    jaxprune.check(params, state)
    chex.assert_trees_all_equal(jaxprune.apply_masks(params, state), params)
    n_zero = budget(40, END)
    assert jaxprune.metrics(state)["prune/n_zero"] == n_zero
    assert jaxprune.summarize(params, state).n_zero == n_zero


def test_partition_with_two_prunes_holds_both_budgets_and_get_masks_merges_them():
    low = jaxprune.cubic_schedule(0.5, BEGIN, END, EVERY, initial_sparsity=0.25)
    labels = {"fc": "high", "constant": "low", "empty": "low", "scale": "none"}
    tx = optax.partition(
        {
            "high": optax.chain(optax.adam(0.1), jaxprune.prune(SCHEDULE)),
            "low": jaxprune.prune(low, inner=optax.sgd(0.1, momentum=0.5)),
            "none": optax.sgd(0.1),
        },
        labels,
    )
    params, state, history = train(tx, make_params())
    for t, (p, masks) in enumerate(history):
        pruned = by_path(masks)
        assert set(pruned) == set(by_path(params)) - {"scale"}
        dropped = {path: int(np.sum(~mask)) for path, mask in pruned.items()}
        assert dropped == {
            "fc/kernel": budget(40, t),
            "constant": budget(12, t, Fraction(1, 2)),
            "fc/bias": 0,
            "empty": 0,
        }
        for path, mask in pruned.items():
            assert np.all(bits(by_path(p)[path])[~mask] == 0), path
    jaxprune.check(params, state)
    chex.assert_trees_all_equal(jaxprune.apply_masks(params, state), params)
    with pytest.raises(ValueError, match=says("2", "prune states")):
        jaxprune.get_state(state)
    with pytest.raises(ValueError, match=says("constant: 6 of 6", "fc/kernel: 30 of 30")):
        jaxprune.check(jax.tree.map(jnp.ones_like, params), state)


@pytest.mark.skipif(not hasattr(optax, "freeze"), reason="optax.freeze is new in 0.2.6")
def test_frozen_leaves_must_be_excluded_or_check_names_them():
    frozen = {"fc": False, "constant": True, "empty": False, "scale": False}
    links = (optax.sgd(0.1), optax.freeze(frozen))
    tx = optax.chain(*links, jaxprune.prune(SCHEDULE, exclude="constant"))
    params, state, history = train(tx, make_params())
    assert_sparse_at_every_step(history, sizes={"fc/kernel": 40})
    chex.assert_trees_all_equal(params["constant"], make_params()["constant"])
    jaxprune.check(params, state)
    wrong = optax.chain(links[0], jaxprune.prune(SCHEDULE), links[1])  # prune would come last
    params, state, _ = train(wrong, make_params())
    with pytest.raises(ValueError, match="constant: 9 of 9 "):
        jaxprune.check(params, state)


@every_dtype
def test_clip_and_decay_before_prune_do_no_harm(dtype):
    opt = (optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.3))
    params, state, history = train(optax.chain(*opt, jaxprune.prune(SCHEDULE)), make_params(dtype))
    assert_sparse_at_every_step(history)
    jaxprune.check(params, state)


@pytest.mark.skip_in("disable_jit", reason="nothing is traced")
@every_form
def test_injected_hyperparams_change_in_mid_run_without_another_trace(form):
    traces = []

    def grads(params, t):
        traces.append(t.dtype)
        return jax.grad(quadratic)(params)

    tx = with_prune(form, optax.inject_hyperparams(optax.adamw)(learning_rate=0.1))
    step = jax.jit(stepper(tx, grads))
    params = make_params()
    carry = params, tx.init(params)
    for t in range(END + 3):
        if t == END + 1:
            params, state = carry
            rate = optax.tree.get(state, "learning_rate")
            carry = params, optax.tree.set(state, learning_rate=jnp.zeros_like(rate))
        carry, seen = step(carry, t)
        assert_sparse_at_every_step([seen], step_of=lambda _, t=t: t)
    chex.assert_trees_all_equal(carry[0], params)  # no weight changes at learning rate 0
    assert len(traces) == 1


# Copies of the params (averages, lookahead) in which dropped weights need not be zero.


def test_an_average_of_the_params_is_dense_until_apply_masks():
    _, state, history = train(adam("chain"), make_params())
    average = make_params()
    for p, _ in history:
        average = optax.incremental_update(p, average, 0.1)
    with pytest.raises(ValueError, match="fc/kernel: 30 of 30 "):
        jaxprune.check(average, state)
    masked = jaxprune.apply_masks(average, state)
    jaxprune.check(masked, state)
    masks = by_path(jaxprune.get_masks(state))
    expected = {path: np.where(masks[path], bits(x), 0) for path, x in by_path(average).items()}
    chex.assert_trees_all_equal({path: bits(x) for path, x in by_path(masked).items()}, expected)


def test_schedule_free_eval_params_are_dense_until_apply_masks():
    opt = optax.contrib.schedule_free_adamw(0.1)
    params, state, _ = train(optax.chain(opt, jaxprune.prune(SCHEDULE)), make_params())
    jaxprune.check(params, state)
    evaluated = optax.contrib.schedule_free_eval_params(state[0], params)
    with pytest.raises(ValueError, match="dropped weights"):
        jaxprune.check(evaluated, state)
    jaxprune.check(jaxprune.apply_masks(evaluated, state), state)


def lookahead(opt):
    return optax.lookahead(opt, sync_period=3, slow_step_size=0.5)


def grads_of_fast(params, t):
    return jax.grad(quadratic)(params.fast)


def test_prune_after_lookahead_prunes_both_copies():
    start = optax.LookaheadParams.init_synced(make_params())
    tx = optax.chain(lookahead(optax.adam(0.1)), jaxprune.prune(SCHEDULE))
    params, state, history = train(tx, start, grads=grads_of_fast)
    sizes = {f"{copy}/{path}": n for copy in ("fast", "slow") for path, n in SIZES.items()}
    assert_sparse_at_every_step(history, sizes=sizes)
    jaxprune.check(params, state)


TWO_COPIES = {
    "plain": {},
    "packed": {"packed": True},
    "random": {"score": jaxprune.random_score, "ties": "hashed"},
    "sums": {"score": jaxprune.Accumulated("age", lambda params, grads: jnp.abs(params))},
    "erk": {"distribution": jaxprune.erk},
    "channels": {"structure": jaxprune.Channel()},
    "groups": {"structure": {"(fast|slow)/w": jaxprune.NM(1, 2, axis=0)}},
    "returning": {"regrow": "zero"},
    "by path": {
        "score": lambda params, grads, key, path: jnp.abs(params) * (-1) ** path.startswith("slow"),
        "regrow": "zero",
    },
    "by roles": {
        "score": lambda params, grads, key, roles: jnp.abs(params) * (-1) ** (roles[0] == "in"),
        "roles": {"fast/w": ("in", "out"), "slow/w": ("out", "in")},
        "regrow": "zero",
    },
}


@pytest.mark.parametrize("form", TWO_COPIES)
def test_both_copies_of_lookahead_keep_the_same_weights(form):
    """Where they kept others, each was reset to the other: neither was trained."""
    params = {"w": jnp.array([[1.0, 1.2], [-1.0, 0.9]]), "bias": jnp.ones(2)}
    target = jnp.array([[2.0, 0.2], [0.1, -2.0]])
    grads = lambda fast: {"w": 2 * (fast["w"] - target), "bias": jnp.ones(2)}
    both = optax.LookaheadParams.init_synced(params)
    schedule = jaxprune.linear_schedule(0.5, 2, 22, every=4)  # most fires are between syncs
    prune = jaxprune.prune(schedule, **TWO_COPIES[form])
    tx = optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5), prune)
    state = tx.init(both)
    for _ in range(60):
        extra = {"grads": jax.tree.map(jnp.zeros_like, both)}
        updates, state = tx.update(grads(both.fast), state, both, **extra)
        both = optax.apply_updates(both, updates)
        masks = jaxprune.get_masks(state)
        chex.assert_trees_all_equal(masks.fast, masks.slow)
    jaxprune.check(both, state, done=True)
    assert n_dropped(masks.fast) == {"w": 2, "bias": 0}
    if form == "plain":  # the fast weights of the last fire decide, and then both copies learn
        np.testing.assert_allclose(both.slow["w"], [[2, 0], [0, -2]], atol=0.1)


@pytest.mark.parametrize(
    "rules, parts",
    (
        ({"exclude": "fast/w"}, ("fast/w, slow/w", "'(fast|slow)/w'")),
        ({"include": "slow/w"}, ("fast/w, slow/w", "'(fast|slow)/w'")),
        ({"overrides": {"slow/.*": 0.25}}, ("fast/w, slow/w", "'(fast|slow)/w'")),
        ({"structure": {"fast/w": jaxprune.Channel()}}, ("fast/w, slow/w", "'(fast|slow)/w'")),
        ({"distribution": jaxprune.global_pool}, ("distribution", "lookahead", "jaxprune.erk")),
    ),
    ids=("exclude", "include", "overrides", "structure", "pool"),
)
def test_copies_of_lookahead_that_would_be_pruned_apart_are_an_error(rules, parts):
    both = optax.LookaheadParams.init_synced({"w": jnp.ones((2, 2)), "bias": jnp.ones(2)})
    prune = jaxprune.prune(jaxprune.one_shot_schedule(0.5), **rules)
    tx = optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5), prune)
    for call in (tx.init, lambda params: jaxprune.plan(params, tx)):
        with pytest.raises(ValueError, match=says(*parts)):
            call(both)


def test_masks_of_two_copies_that_differ_are_refused_and_become_equal():
    params = {"w": jnp.arange(1.0, 9.0).reshape(2, 4), "bias": jnp.ones(4)}
    both = optax.LookaheadParams.init_synced(params)
    prune = jaxprune.prune(jaxprune.linear_schedule(0.5, 1, 3, every=1))
    tx = optax.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5), prune)
    masks = {"w": jnp.ones((2, 4), bool).at[0, 0].set(False), "bias": jnp.ones(4, bool)}
    other = masks | {"w": jnp.ones((2, 4), bool).at[1, 1].set(False)}
    apart = optax.LookaheadParams(fast=masks, slow=other)
    with pytest.raises(ValueError, match=says("set_masks", "w", "masks._replace(slow=masks.fast)")):
        jaxprune.set_masks(tx.init(both), apart)
    state = jaxprune.set_masks(tx.init(both), apart._replace(slow=masks))
    saved = optax.tree.set(state, masks=jax.tree.map(lambda m: m.astype(jnp.uint8), apart))
    for _ in range(5):
        _, saved = tx.update(jax.tree.map(jnp.zeros_like, params), saved, both)
        both = jaxprune.apply_masks(both, saved)
    chex.assert_trees_all_equal(*jaxprune.get_masks(saved))
    assert n_dropped(jaxprune.get_masks(saved).fast) == {"w": 4, "bias": 0}


def test_keep_zeros_keeps_what_is_zero_in_both_copies():
    zeros = lambda *at: {"w": jnp.ones((2, 2)).at[at].set(0), "bias": jnp.ones(2)}
    fast = zeros([0, 0], [0, 1])
    both = optax.LookaheadParams(fast=fast, slow=zeros([0, 1], [0, 1]))
    state = jaxprune.keep_zeros(optax.identity()).init(both)
    masks = jaxprune.get_masks(state)
    chex.assert_trees_all_equal(masks.fast, masks.slow)
    assert masks.fast["w"].tolist() == [[False, True], [True, True]]


def test_lookahead_of_params_that_are_one_array():
    both = optax.LookaheadParams.init_synced(jnp.arange(1.0, 9.0).reshape(2, 4))
    tx = optax.chain(
        optax.lookahead(optax.sgd(0.1), 5, 0.5), jaxprune.prune(jaxprune.one_shot_schedule(0.5))
    )
    _, state = tx.update(jnp.ones((2, 4)), tx.init(both), both)
    assert n_dropped(jaxprune.get_masks(state)) == {"fast": 4, "slow": 4}


def test_lookahead_inside_prune_is_refused_with_what_works():
    """Its params are two copies, its gradients those of one."""
    start = optax.LookaheadParams.init_synced(make_params())
    fix = re.escape("optax.chain(optax.lookahead(optimizer, ...), jaxprune.prune(schedule))")
    for inner in (lookahead(optax.sgd(0.1)), optax.chain(lookahead(optax.sgd(0.1)))):
        with pytest.raises(ValueError, match=fix):
            jaxprune.prune(SCHEDULE, inner=inner).init(start)


def test_prune_inside_lookahead_is_detected():
    start = optax.LookaheadParams.init_synced(make_params())
    tx = lookahead(adam("chain"))
    params, state, _ = train(tx, start, grads=grads_of_fast)
    assert jaxprune.get_state(state).violations > 0
    with pytest.raises(ValueError, match=r"lookahead around prune .* Put prune behind it"):
        jaxprune.check(params.slow, state)
    assert_dropped_are_plus_zero(
        jaxprune.apply_masks(params.slow, state), jaxprune.get_masks(state)
    )


@pytest.mark.parametrize("opaque", (True, False), ids=("opaque", "transparent"))
def test_prune_inside_sam_counts_its_real_updates(opaque):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    inside = optax.chain(optax.adam(0.1), jaxprune.prune(SCHEDULE))
    sam = optax.contrib.sam(inside, adversary, sync_period=2, opaque_mode=opaque)
    extra = {"grad_fn": lambda p, _: jax.grad(quadratic)(p)} if opaque else {}
    tx = optax.GradientTransformation(sam.init, lambda g, s, p: sam.update(g, s, p, **extra))
    period = 1 if opaque else 2
    _, state, history = train(tx, make_params(), period * N_STEPS)
    assert jaxprune.get_state(state).prune_step == N_STEPS
    for t, (p, masks) in enumerate(history):
        real = (t + 1) // period - 1
        assert_budget(masks, real)
        # Between real updates the params are perturbed, unless `opaque`. At a fire, sam reaches a
        # newly dropped weight by adding two rounded differences; the next update makes it zero.
        if opaque or (t % 2 == 1 and not SCHEDULE.fires(real)):
            assert_dropped_are_plus_zero(p, masks)
    assert {m.dtype.name for m in jax.tree.leaves(jaxprune.get_state(state).masks)} == {"uint8"}


# Reading and writing the state.


@every_form
def test_tree_set_count_does_not_restart_pruning(form):
    params, state, _ = train(adam(form), make_params())
    reset = optax.tree.set(state, count=jnp.int32(0))
    assert optax.tree.get(reset, "count") == 0
    assert optax.tree.get(reset, "prune_step") == N_STEPS
    _, after, history = train(adam(form), params, state=reset)
    assert_sparse_at_every_step(history, step_of=lambda t: t + N_STEPS)
    chex.assert_trees_all_equal(jaxprune.get_masks(after), jaxprune.get_masks(state))


@every_form
def test_masks_set_from_sparse_params_never_regrow(form):
    params, _ = jaxprune.prune_params(make_params(), 0.6)
    masks = jaxprune.masks_from_params(params)
    state = optax.tree.set(adam(form).init(params), masks=masks)
    chex.assert_trees_all_equal(jaxprune.get_masks(state), masks)
    params, state, history = train(adam(form), params, state=state)
    before = {path: ~mask for path, mask in by_path(masks).items()}
    n_start = {path: int(np.sum(mask)) for path, mask in before.items()}
    for t, (p, masks) in enumerate(history):
        dropped = {path: ~mask for path, mask in by_path(masks).items()}
        for path, mask in dropped.items():
            assert not np.any(before[path] & ~mask), path
            assert np.sum(mask) == max(n_start[path], budget(SIZES.get(path, 0), t)), path
        assert_dropped_are_plus_zero(p, masks)
        before = dropped
    jaxprune.check(params, state)


def test_map_params_gives_the_state_the_shardings_of_the_params():
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("d", None)), NamedSharding(mesh, P())
    params = {"kernel": make_params()["fc"]["kernel"], "scale": jnp.ones(())}
    shardings = {"kernel": rows, "scale": whole}
    tx = adam("inner")
    state = tx.init(params)
    state_shardings = optax.tree.map_params(
        tx, lambda _, s: s, state, shardings, transform_non_params=lambda _: whole
    )
    assert jax.tree.structure(state_shardings) == jax.tree.structure(state)
    carry = jax.device_put((params, state), (shardings, state_shardings))
    step = jax.jit(stepper(tx), out_shardings=((shardings, state_shardings), None))
    for t in range(END + 1):
        carry, seen = step(carry, t)
        assert_sparse_at_every_step([seen], lambda _, t=t: t, sizes={"kernel": 40})
    assert jaxprune.get_state(carry[1]).masks["kernel"].sharding == rows


@every_form
def test_map_params_reaches_every_mask_and_nothing_else_of_the_prune_state(form):
    tx = with_prune(form, optax.sgd(0.1))
    state = tx.init(make_params())
    marked = optax.tree.map_params(
        tx, lambda _: "param", state, transform_non_params=lambda _: "no"
    )
    prune_state = jaxprune.get_state(marked)
    assert set(jax.tree.leaves(prune_state.masks)) == {"param"}
    assert set(jax.tree.leaves(prune_state.progress)) == {"no"}
    others = prune_state._replace(masks=(), inner_state=(), progress=())
    assert others == ("no", (), "no", "no", (), None, None, ())


# Calling conventions and transformations of jax.


def needs_scale():
    def update(updates, state, params=None, *, scale, **extra_args):
        return jax.tree.map(lambda u: scale * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@every_form
def test_extra_args_reach_the_optimizer_and_unknown_ones_do_not_matter(form):
    params = make_params()
    tx = with_prune(form, needs_scale())
    updates, _ = tx.update(params, tx.init(params), params, scale=3.0, unknown=object())
    chex.assert_trees_all_equal(updates, jax.tree.map(lambda p: 3.0 * p, params))
    with pytest.raises(TypeError, match="scale"):
        tx.update(params, tx.init(params), params)


def test_extra_args_are_not_passed_to_an_inner_that_takes_none():
    params = make_params()
    tx = jaxprune.prune(SCHEDULE, inner=optax.trace(0.9))
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    chex.assert_trees_all_equal(updates, params)


@every_form
def test_init_is_the_same_under_jit_and_has_the_shapes_of_eval_shape(form):
    params = make_params()
    tx = with_prune(form, optax.adamw(0.1))
    state = tx.init(params)
    chex.assert_trees_all_equal(jax.jit(tx.init)(params), state)
    for args in (params, jax.eval_shape(lambda: params)):
        shapes = jax.eval_shape(tx.init, args)
        chex.assert_trees_all_equal_shapes_and_dtypes(shapes, state)


def test_a_scan_equals_a_loop_of_jitted_steps():
    tx = adam("inner")
    params, state, _ = train(tx, make_params())
    carry = make_params(), tx.init(make_params())
    for t in range(N_STEPS):
        carry, _ = jitted_stepper(tx)(carry, t)
    chex.assert_trees_all_equal(carry, (params, state))


@pytest.mark.skip_in("debug_nans", "disable_jit", reason="nothing is donated")
def test_donation_takes_every_buffer_and_changes_nothing():
    tx = adam("inner")
    step, donating_step = jitted_stepper(tx), jax.jit(stepper(tx), donate_argnums=0)
    kept = make_params(), tx.init(make_params())
    donated = jax.tree.map(jnp.copy, kept)
    for t in range(BEGIN + 2):
        given = donated
        kept, _ = step(kept, t)
        donated, _ = donating_step(given, t)
        assert all(x.is_deleted() for x in jax.tree.leaves(given) if x.size)
    chex.assert_trees_all_equal(donated, kept)


def test_vmap_over_models_that_fire_at_different_steps_equals_a_loop_over_them():
    tx = adam("inner")
    models = [make_params(seed=seed) for seed in range(3)]
    states = [optax.tree.set(tx.init(p), prune_step=jnp.int32(i)) for i, p in enumerate(models)]
    one, many = jitted_stepper(tx), jax.jit(jax.vmap(stepper(tx), in_axes=(0, None)))
    carries = list(zip(models, states, strict=True))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *carries)
    for t in range(END + 1):
        stacked, seen = many(stacked, t)
        for i, carry in enumerate(carries):
            carries[i], (_, masks) = one(carry, t)
            member = jax.tree.map(lambda x, i=i: x[i], seen)
            chex.assert_trees_all_equal(member[1], masks)
            assert_sparse_at_every_step([member], lambda _, t=t, i=i: t + i)
