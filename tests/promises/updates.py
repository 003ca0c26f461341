"""Every structure with every distribution, score, form and dtype, in batches of 64 networks.

Weights, gradients and updates are small integers, so that scores of blocks and channels are exact
and full of ties. Each member of a batch has its own weights and follows one of eight schedules.
After each update, for each member and leaf:

- the mask drops whole units, as many as the schedule asks for, and never one less than before;
- what a fire dropped are the lowest scores of its pool, of equal ones the later (a stable sort in
  Python is the oracle). A user's score is rounded to its dtype, and NaN ranks above all. In a
  normalized pool scores are divided, so that equal ones may round differently: there, only the
  scores of what is kept must be the largest;
- dropped weights are +0.0, the updates of kept ones are what came in, and leaves that are not
  chosen are not touched.
"""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

import jaxprune
from combinations import DISTRIBUTIONS, GROUPED, SCORES, STRUCTURES
from helpers import half_up
from jaxprune._base.counting import enable_x64
from promises.runner import Promise

N_MEMBERS, N_STEPS, N_DRAWS = 64, 5, 2
SHAPES = {"fc": (16, 12), "stack": (3, 8, 6)}
DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "float16", "float64", "float8_e5m2", "complex64")
FORMS = ("chain", "inner", "packed")
FINALS = (Fraction(1, 2), Fraction(1, 10), Fraction(1, 3), Fraction(2, 3), Fraction(3, 4))
FINALS += (Fraction(0), Fraction(7, 12), Fraction(1, 4))
ORDERED = ("magnitude", "saliency", "gradient", "user")  # scores that the oracle knows


def valid(structure, distribution):
    """Whether the pair exists: groups have a pool each, and few channels can't be spread by ERK."""
    if structure in GROUPED:
        return distribution in ("uniform", "per slice")
    return not (structure.startswith("channel") and "er" in distribution.split())


PAIRS = [pair for pair in itertools.product(STRUCTURES, DISTRIBUTIONS) if valid(*pair)]
PAIRS = [pair for pair in PAIRS if "erk per slice" not in pair or "channel" not in pair[0]]


def case_of(chunk):
    """The combination of a chunk: pairs in turn, and with each round another score and dtype."""
    turn, pair = divmod(chunk, len(PAIRS))
    dtype = DTYPES[(turn + pair) % len(DTYPES)]
    score = list(SCORES)[(turn + pair) % len(SCORES)]
    if dtype == "complex64" and score != "random":
        score = "magnitude"
    if score == "movement" and PAIRS[pair][0] in ("channel", "by rule"):  # an error
        score = "saliency"
    return (*PAIRS[pair], score, FORMS[chunk % len(FORMS)], dtype)


@functools.cache
def program(structure, distribution, score, form, dtype):
    """The schedules, the first state of a batch and one update of it, compiled."""
    del dtype
    finals = FINALS[:1] * len(FINALS) if structure in GROUPED else FINALS
    schedules = [
        jaxprune.linear_schedule(float(final), i % 3, i % 3 + 2 * (i % 2), every=1)
        for i, final in enumerate(finals)
    ]
    options = {"structure": STRUCTURES[structure], "distribution": DISTRIBUTIONS[distribution]}
    options |= {"score": SCORES[score], "packed": form == "packed"}
    inner = {} if form == "chain" else {"inner": optax.scale(-1.0)}
    tx = jaxprune.prune(schedules, include="fc|stack", **inner, **options)

    def init(params, number):
        return jaxprune.choose_schedule(tx.init(params), number)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, grads=grads)
        return updates, state, optax.apply_updates(params, updates)

    return schedules, finals, jax.jit(jax.vmap(init)), jax.jit(jax.vmap(step))


# The oracle


def rule_of(structure, name):
    rule = STRUCTURES[structure]
    return rule.get(name, jaxprune.Unstructured()) if isinstance(rule, dict) else rule


def split_units(rule, x):
    """The entries of each unit of one leaf, a list of 1-D arrays in the order of the units."""
    if isinstance(rule, jaxprune.Channel):
        return list(np.moveaxis(x, rule.axis, 0).reshape(x.shape[rule.axis], -1))
    if isinstance(rule, jaxprune.Block):
        rows, cols = rule.shape
        corners = itertools.product(
            np.ndindex(x.shape[:-2]), range(0, x.shape[-2], rows), range(0, x.shape[-1], cols)
        )
        return [x[lead][r : r + rows, c : c + cols].ravel() for lead, r, c in corners]
    return list(x.reshape(-1, 1))


def score_of(rule, entries):
    """The score of a unit, from those of its weights: exact for small integers, inf for NaN."""
    if isinstance(rule, jaxprune.Channel):
        return entries.sum() if rule.norm == 1 else (entries**2).sum()
    if np.isnan(entries).any():
        return np.inf
    if isinstance(rule, jaxprune.Block) and rule.pooling == "mean":
        return Fraction(int(entries.sum()), entries.size)
    return entries.max()


def groups_of(rule, shape):
    """The number of the group of each unit: those of N:M and of balanced blocks; else all 0."""
    if isinstance(rule, jaxprune.NM):
        index = np.indices(shape)
        number = index.copy()
        number[-2] //= rule.m
        return np.ravel_multi_index(tuple(number), shape).ravel()
    if isinstance(rule, jaxprune.Block) and rule.balanced:
        columns = -(-shape[-1] // rule.shape[1])
        n_units = len(split_units(rule, np.zeros(shape)))
        return np.arange(n_units) % columns
    return np.zeros(len(split_units(rule, np.zeros(shape))), int)


def best(scores, kept_before, n_keep):
    """Which units are kept: the largest scores of those that are left, of equal ones the first."""
    order = sorted(range(len(scores)), key=lambda i: (not kept_before[i], -scores[i], i))
    kept = np.zeros(len(scores), bool)
    kept[order[:n_keep]] = True
    return kept


def check_leaf(rule, scores, before, after, target, divided):
    """Checks one pool of a leaf: its slice, or the whole, whose scores may have been divided."""
    units = split_units(rule, after)
    assert all(unit.all() or not unit.any() for unit in units), "a unit is split"
    kept, kept_before = (np.array([u.all() for u in split_units(rule, m)]) for m in (after, before))
    assert not np.any(kept & ~kept_before), "a unit returned"
    group = groups_of(rule, after.shape)
    for number in np.unique(group):
        ours = group == number
        if target is not None:
            want = half_up(target * ours.sum())
            assert np.sum(~kept[ours]) == max(want, np.sum(~kept_before[ours])), "wrong count"
        if scores is not None and np.sum(kept[ours]) < np.sum(kept_before[ours]):
            of_units = [score_of(rule, entries) for entries in split_units(rule, scores)]
            chosen = [s for s, mine in zip(of_units, ours, strict=True) if mine]
            expected = best(chosen, kept_before[ours], kept[ours].sum())
            same = np.array_equal(kept[ours], expected)
            if divided:
                same = same or scores_in(chosen, kept[ours]) == scores_in(chosen, expected)
            assert same, "not the lowest scores"


def scores_in(scores, kept):
    """The scores of what is kept, in order."""
    return sorted(itertools.compress(scores, kept))


# The check


def integers(rng, shape, dtype, low=-7, high=8):
    x = rng.integers(low, high, (N_MEMBERS, *shape))
    return jnp.asarray(x.astype(getattr(ml_dtypes, dtype, dtype)))


def as_float(x):
    x = np.asarray(x)
    return np.abs(x) if np.iscomplexobj(x) else x.astype(np.float64)


def scores_of(score, w, g):
    if score == "saliency":
        return np.abs(as_float(w) * as_float(g))
    if score == "gradient":
        return np.abs(as_float(g))
    return as_float(SCORES["user"](w, g, None)) if score == "user" else np.abs(as_float(w))


def check(chunk):
    """Checks one combination: two batches of 64 networks, five updates."""
    case = case_of(chunk)
    with enable_x64(case[-1] == "float64"):
        try:
            rng = np.random.default_rng(chunk)
            return sum(check_case(case, rng) for _ in range(N_DRAWS))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


def check_case(case, rng):
    """Checks the laws after each update of one batch; returns how many updates it checked."""
    structure, distribution, score, form, dtype = case
    schedules, finals, init, step = program(*case)
    params = {name: integers(rng, shape, dtype) for name, shape in SHAPES.items()}
    params |= {"bias": integers(rng, (8,), dtype)}
    number = np.arange(N_MEMBERS) % len(schedules)
    state = init(params, jnp.asarray(number, jnp.int32))
    old = {name: np.ones((N_MEMBERS, *shape), bool) for name, shape in SHAPES.items()}
    for t in range(N_STEPS):
        grads = {name: integers(rng, p.shape[1:], dtype, -1, 2) for name, p in params.items()}
        updates, state, after = step(grads, state, params)
        masks = jaxprune.get_masks(state)
        targets = [_target(schedules[i], finals[i], t) for i in number]
        for name in SHAPES:
            mask = np.asarray(masks[name])
            landed = np.asarray(after[name])
            assert np.array_equal(landed[~mask].tobytes(), bytes(landed[~mask].nbytes)), "not +0"
            sent, came = np.asarray(updates[name]), np.asarray(grads[name])
            came = came if form == "chain" else -came
            same = np.array_equal if dtype == "complex64" else _same_bits  # -1 * 0j has either sign
            assert same(sent[mask], came[mask]), "a kept update was changed"
            scores = scores_of(score, params[name], grads[name]) if score in ORDERED else None
            slices = name == "stack" and "per slice" in distribution
            for i in range(N_MEMBERS):
                exact = targets[i] if distribution in ("uniform", "per slice") else None
                own = None if scores is None else scores[i]
                parts = range(len(mask[i])) if slices else [slice(None)]
                for part in parts:
                    check_leaf(
                        rule_of(structure, name),
                        None if own is None else own[part],
                        old[name][i][part],
                        mask[i][part],
                        exact,
                        distribution == "normalized",
                    )
            old[name] = mask
        assert np.asarray(masks["bias"]).all()
        came = np.asarray(grads["bias"]) * (1 if form == "chain" else -1)
        assert np.array_equal(as_float(updates["bias"]), as_float(came))
        if distribution in ("erk", "er", "global", "normalized"):
            _check_total(structure, masks, targets)
        params = after
    assert not np.any(np.asarray(jaxprune.get_state(state).violations))
    jaxprune.check(params, state)
    return N_MEMBERS * N_STEPS


def _same_bits(x, y):
    return x.tobytes() == y.tobytes()


def _target(schedule, final, step):
    if step < schedule.begin_step:
        return Fraction(0)
    if step >= schedule.end_step:
        return final
    done = Fraction(step - schedule.begin_step, schedule.end_step - schedule.begin_step)
    return final * done


def _check_total(structure, masks, targets):
    for i, target in enumerate(targets):
        dropped = n_units = 0
        for name in SHAPES:
            units = split_units(rule_of(structure, name), np.asarray(masks[name][i]))
            n_units += len(units)
            dropped += sum(not unit.any() for unit in units)
        assert dropped == half_up(target * n_units), f"{dropped} of {n_units} at {target}"


PROMISE = Promise(
    "updates",
    "After each update masks have exact counts of whole units, the lowest scores are dropped, "
    "dropped weights are +0.0, and the updates of kept weights are bit-identical.",
    160,
    check,
    few=(0, 130, 151),
)
