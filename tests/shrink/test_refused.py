"""Refused groups: each with its true reason and its place; they do not affect others."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import jaxprune
from helpers import on_device
from jaxprune._shrink import fit


def parallel(**branches):
    """Hidden layers side by side, each with kernels `NAME_in` and `NAME_out` of eight units.

    Args:
      branches: by name, what each does to its hidden units.
    """

    def apply_fn(params, x):
        y = 0.0
        for name, middle in branches.items():
            y = y + middle(jnp.tanh(x @ params[f"{name}_in"])) @ params[f"{name}_out"]
        return y

    rng = np.random.default_rng(0)
    params = {}
    for name in branches:
        params[f"{name}_in"] = on_device(rng.normal(size=(3, 8)))
        params[f"{name}_out"] = on_device(rng.normal(size=(8, 2)))
    return apply_fn, params


def halved(params, names):
    """Zeroes four units of some of the layers."""
    return {
        path: leaf.at[:, ::2].set(0.0) if path in {f"{name}_in" for name in names} else leaf
        for path, leaf in params.items()
    }


def same(x):
    return x


def hard_coded(x):
    return x.reshape(len(x), 8)


def scaled(x):
    return x / np.sqrt(x.shape[-1])


def wired(x):
    return x if x.shape[-1] == 8 else -x


def normalized(x):
    return x / x.sum(-1, keepdims=True)


def squashed(x):
    return jax.nn.sigmoid(x)


X = jnp.ones((2, 3))
BRANCHES = {  # what a branch does, and the reason and the place in the reports
    "hard_coded": (hard_coded, "is its length hard-coded? TypeError", "test_refused.py"),
    "scaled": (scaled, "computed from the length of this axis: div by 2.828", "div"),
    "wired": (wired, "the program changes with the length of this axis", "neg"),
    "normalized": (normalized, "reduce_sum runs over it", "reduce_sum"),
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("first", (True, False), ids=("first", "last"))
def test_a_refused_group_does_not_affect_others_and_is_reported_with_its_place(name, first):
    middle, reason, _ = BRANCHES[name]
    branches = {"a": same, "b": same}
    branches = {"bad": middle, **branches} if first else {**branches, "bad": middle}
    apply_fn, params = parallel(**branches)
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert set(groups) == {"(params/)?a_in", "(params/)?b_in"}
    small, report = jaxprune.shrink(apply_fn, halved(params, branches), X)
    assert {path: leaf.shape for path, leaf in small.items() if "bad" not in path} == {
        **{f"{name}_in": (3, 4) for name in "ab"},
        **{f"{name}_out": (4, 2) for name in "ab"},
    }
    for result in (groups, report):
        (group,) = [g for g in result.refused if ("bad_in", 1) in g.members]
        assert reason in group.reason
        assert "test_refused.py:" in group.place or name == "normalized"
        assert str(group) in " ".join(str(result).split())


def test_several_refused_groups_have_a_reason_each():
    apply_fn, params = parallel(a=same, **{name: b[0] for name, b in BRANCHES.items()}, b=same)
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert set(groups) == {"(params/)?a_in", "(params/)?b_in"}
    for name, (_, reason, _) in BRANCHES.items():
        (group,) = [g for g in groups.refused if (f"{name}_in", 1) in g.members]
        assert reason in group.reason


def test_parts_of_equal_length_beside_a_refused_layer_shrink():
    def apply_fn(params, x):
        left, right = jnp.split(jnp.tanh(x @ params["w"]), 2, -1)
        y = left @ params["u"] + right @ params["v"]
        return y + hard_coded(jnp.tanh(x @ params["bad"])) @ params["out"]

    shapes = {"w": (3, 8), "u": (4, 2), "v": (4, 2), "bad": (3, 8), "out": (8, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert set(groups) == {"(params/)?w"}
    assert any("hard-coded" in group.reason for group in groups.refused)
    params["w"] = params["w"].at[:, jnp.array([0, 1, 5])].set(0.0)
    small, report = jaxprune.shrink(apply_fn, params | {"bad": jnp.zeros((3, 8))}, X)
    assert (small["w"].shape, small["bad"].shape) == ((3, 6), (3, 8))
    assert any("hard-coded" in group.reason for group in report.refused)


def split(n_parts):
    """Cuts hidden units into equal parts, each of which has a kernel."""
    return lambda p, h: sum(
        part @ p[f"part{i}"] for i, part in enumerate(jnp.split(h, n_parts, -1))
    )


def sliced(p, h):
    n = h.shape[-1] // 2
    return h[:, :n] @ p["part0"] + h[:, n:] @ p["part1"]


def joined_and_split(p, h):
    both = jnp.concatenate([h, jnp.tanh(X @ p["b"])], -1)
    return split(2)(p, both)


CUTS = {"halves": (split(2), 2), "thirds": (split(3), 3), "slices": (sliced, 2)}
CUTS["joined"] = (joined_and_split, 1)  # both parts are whole layers


@pytest.mark.parametrize("order", ("bad worse cut", "bad cut worse", "cut bad worse"))
@pytest.mark.parametrize("name", CUTS)
def test_parts_of_equal_length_shrink_wherever_refused_layers_are(name, order):
    cut, n_parts = CUTS[name]

    def apply_fn(p, x):
        y = 0.0
        for layer in order.split():
            h = jnp.tanh(x @ p[layer])
            if layer == "cut":
                y = y + cut(p, h)
            else:
                y = y + hard_coded(h) @ p[f"{layer}_out"]
        return y

    params = {"bad": jnp.ones((3, 8)), "worse": jnp.ones((3, 8)), "cut": jnp.ones((3, 4 * n_parts))}
    params |= {"bad_out": jnp.ones((8, 2)), "worse_out": jnp.ones((8, 2))}
    params |= {f"part{i}": jnp.ones((4, 2)) for i in range(max(n_parts, 2))}
    params |= {"b": jnp.ones((3, 4))} if name == "joined" else {}
    groups = jaxprune.channel_groups(apply_fn, params, X)
    cut_leaves = {"cut", "b"} & params.keys()
    assert set(groups) == {f"(params/)?{leaf}" for leaf in cut_leaves}
    for layer in ("bad", "worse"):
        (group,) = [g for g in groups.refused if (layer, 1) in g.members]
        assert group.members == ((layer, 1), (f"{layer}_out", 0))
        assert "hard-coded? TypeError" in group.reason
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, _ = jaxprune.shrink(apply_fn, sparse, X)
    shapes = {path: leaf.shape for path, leaf in params.items()}
    shapes |= {leaf: (3, shapes[leaf][1] // 2) for leaf in cut_leaves}
    shapes |= {path: (2, 2) for path in params if path.startswith("part")}
    assert {path: leaf.shape for path, leaf in small.items()} == shapes


def test_groups_that_only_fit_together_are_tried_together():
    def apply_fn(params, x):
        left, right = x @ params["left"], x @ params["right"]
        n = min(left.shape[1], right.shape[1])
        y = left.reshape(len(x), n) @ params["up"] + right.reshape(len(x), n) @ params["down"]
        return y + hard_coded(jnp.tanh(x @ params["bad"])) @ params["out"]

    shapes = {"left": (3, 8), "right": (3, 8), "up": (8, 2), "down": (8, 2), "bad": (3, 8)}
    params = {name: jnp.ones(shape) for name, shape in {**shapes, "out": (8, 2)}.items()}
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert set(groups) == {"(params/)?left", "(params/)?right"}
    params |= {name: params[name].at[:, :3].set(0.0) for name in ("left", "right", "bad")}
    small, report = jaxprune.shrink(apply_fn, params, X)
    assert [small[name].shape for name in ("left", "right", "bad")] == [(3, 5), (3, 5), (3, 8)]
    assert ("bad", 1) in {member for group in report.refused for member in group.members}


def similarity(activation):
    """Two hidden layers that are multiplied with each other, so that no weight reads them."""

    def apply_fn(params, x):
        left, right = activation(x, params["left"]), activation(x, params["right"])
        return jnp.einsum("bh,bh->b", left, right) + parallel(a=same)[0](params, x).sum(-1)

    params = {name: jnp.ones((3, 8)).at[0].set(2.0) for name in ("left", "right")}
    return apply_fn, params | parallel(a=same)[1]


@pytest.mark.parametrize(
    "activation, made, primitive",
    (
        (lambda x, w: jax.nn.sigmoid(x @ w), "logistic makes 0.5 of zero", "logistic"),
        (
            lambda x, w: x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)),
            "div makes a value that is not finite, such as 0 / 0",
            "div",
        ),
        (lambda x, w: jnp.log(jnp.abs(x @ w)), "log makes a value that is not finite", "log"),
    ),
    ids=("sigmoid", "norm", "log"),
)
def test_reasons_name_what_makes_a_zero_something_else(activation, made, primitive):
    apply_fn, params = similarity(activation)
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert list(groups) == ["(params/)?a_in"]
    (group,) = [g for g in groups.refused if ("left", 1) in g.members]
    assert group.reason.startswith(f"its units are not zero when all their weights are: {made}")
    assert group.place.startswith(f"{primitive}, test_refused.py:")


def test_units_that_stay_nonzero_are_pruned_where_they_are_read():
    apply_fn, params = parallel(a=same, bad=squashed)
    groups = jaxprune.channel_groups(apply_fn, params, X)
    assert {name: s.axis for name, s in groups.items()} == {
        "(params/)?a_in": 1,
        "(params/)?bad_out": 0,
    }
    sparse, _ = jaxprune.prune_params(params, 0.5, structure=groups, include=tuple(groups))
    small, _ = jaxprune.shrink(apply_fn, sparse, X)
    assert (small["bad_in"].shape, small["bad_out"].shape) == ((3, 4), (4, 2))


def test_channel_groups_is_a_dict_that_survives_a_pickle():
    apply_fn, params = parallel(a=same, bad=normalized)
    groups = jaxprune.channel_groups(apply_fn, params, X)
    again = pickle.loads(pickle.dumps(groups))
    assert (again, again.groups) == (dict(groups), groups.groups)
    assert str(again) == str(groups)
    assert [(g.size, g.kept) for g in groups.groups if not g.reason] == [(8, 8)]
    assert str(groups).startswith("channel_groups: 1 group, and 4 refused\n")


class Blocks(nn.Module):
    """Residual blocks. One may have its size in the code; attention scales by its size."""

    n: int
    bad: int = -1
    attention: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        for i in range(self.n):
            y = nn.relu(nn.Dense(8)(x))
            if i == self.bad:
                y = y.reshape(*x.shape[:-1], 8)
            x = x + nn.Dense(4)(y)
            if self.attention:
                x = x + nn.MultiHeadDotProductAttention(2, qkv_features=6)(x)
        return nn.Dense(3)(x)


def trials(monkeypatch, *model_and_input, of=jaxprune.channel_groups):
    """How often `channel_groups` makes a smaller program of a model, and its groups."""
    count = []

    def differences(*args):
        count.append(1)
        return differences_before(*args)

    differences_before = fit.differences
    monkeypatch.setattr(fit, "differences", differences)
    groups = of(*model_and_input)
    monkeypatch.setattr(fit, "differences", differences_before)
    return len(count), groups


@pytest.mark.parametrize("attention", (False, True))
def test_the_number_of_trials_does_not_grow_with_the_number_of_layers(monkeypatch, attention):
    x = jnp.ones((2, 5, 3))

    def trials_of(model):
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        return trials(monkeypatch, model.apply, variables, x)

    good, _ = trials_of(Blocks(3, attention=attention))
    few, _ = trials_of(Blocks(2, 1, attention))
    many, groups = trials_of(Blocks(6, 4, attention))
    assert many <= few + 2
    assert good <= (5 if attention else 1)
    hard_coded = [g for g in groups.refused if "hard-coded" in g.reason]
    assert [g.members[0][0] for g in hard_coded] == ["params/Dense_10/kernel"]
    scaled = [g for g in groups.refused if "a constant is computed" in g.reason]
    assert len(scaled) == (6 if attention else 0)


class Heads(nnx.Module):
    """Blocks with attention; those in `bad` hard-code the length of their hidden layer."""

    def __init__(self, n, bad, rngs):
        self.attention = nnx.List(
            [nnx.MultiHeadAttention(2, 4, rngs=rngs, decode=False) for _ in range(n)]
        )
        self.hidden = nnx.List([nnx.Linear(4, 8, rngs=rngs) for _ in range(n)])
        self.back = nnx.List([nnx.Linear(8, 4, rngs=rngs) for _ in range(n)])
        self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.bad = bad

    def __call__(self, x):
        x = self.first(x)
        for i, (attention, hidden, back) in enumerate(
            zip(self.attention, self.hidden, self.back, strict=True)
        ):
            y = nnx.relu(hidden(x))
            x = x + back(y.reshape(*x.shape[:-1], 8) if i in self.bad else y)
            x = x + attention(x)
        return self.last(x)


@pytest.mark.parametrize("every", (1, 2))
def test_layers_like_one_that_fails_are_refused_untried(monkeypatch, every):
    """Errors of the model hide each other: a trial for each layer took half a minute for 24."""

    def trials_of(n):
        model = Heads(n, bad=range(0, n, every), rngs=nnx.Rngs(0))
        return trials(monkeypatch, model, jnp.ones((2, 5, 3)), of=jaxprune.channel_groups_nnx)

    few, _ = trials_of(3)
    many, groups = trials_of(8)
    assert every == 2 or many == few
    monkeypatch.setattr(fit.Alike, "key_of", lambda self, number: number)
    all_tried, expected = trials_of(8)
    assert all_tried > many + 8
    assert set(groups) == set(expected)
    assert sorted(map(str, groups.refused)) == sorted(map(str, expected.refused))


@pytest.mark.parametrize("n", (3, 4))
def test_an_error_names_one_of_many_groups_with_the_same_reason(n):
    apply_fn, params = parallel(**{f"bad{i}": hard_coded for i in range(n)})
    with pytest.raises(ValueError, match="no channels can be pruned") as caught:
        jaxprune.channel_groups(apply_fn, params, X)
    message = str(caught.value)
    reason = ": the model fails when this axis is shorter"
    others = f" and {n - 1} other groups" if n > 3 else ""
    assert f"bad0_in[1], bad0_out[0]{others}{reason}" in message
    assert message.count(reason) == (1 if n > 3 else n)


def test_a_layer_of_another_length_is_tried_although_one_on_the_same_line_fails():
    def apply_fn(params, x):
        for i, n in enumerate((8, 8, 6)):
            h = jnp.tanh(x @ params[f"in{i}"])
            x = x + h.reshape(len(x), n if n == 8 else h.shape[1]) @ params[f"out{i}"]
        return x @ params["last"]

    params = {f"in{i}": jnp.ones((3, n)) for i, n in enumerate((8, 8, 6))}
    params |= {f"out{i}": jnp.ones((n, 3)) for i, n in enumerate((8, 8, 6))}
    groups = jaxprune.channel_groups(apply_fn, params | {"last": jnp.ones((3, 2))}, X)
    assert list(groups) == ["(params/)?in2"]
    refused = [g.members[0][0] for g in groups.refused if "hard-coded" in g.reason]
    assert refused == ["in0", "in1"]


def test_the_number_of_trials_is_linear_in_refused_layers_and_cuts(monkeypatch):
    def trials_of(n):
        branches = {f"{kind}{i}": kind for i in range(n) for kind in ("bad", "cut")}

        def apply_fn(p, x):
            y = 0.0
            for name, kind in branches.items():
                h = jnp.tanh(x @ p[f"{name}_in"])
                if kind == "bad":
                    y = y + hard_coded(h) @ p[f"{name}_out"]
                else:
                    y = y + split(2)({f"part{k}": p[f"{name}_out{k}"] for k in range(2)}, h)
            return y

        params = {f"{name}_in": jnp.ones((3, 8)) for name in branches}
        params |= {f"bad{i}_out": jnp.ones((8, 2)) for i in range(n)}
        params |= {f"cut{i}_out{k}": jnp.ones((4, 2)) for i in range(n) for k in range(2)}
        count, groups = trials(monkeypatch, apply_fn, params, X)
        assert set(groups) == {f"(params/)?cut{i}_in" for i in range(n)}
        return count

    assert trials_of(6) <= 2 * trials_of(3) + 2


# Random numbers


class Dropped(nnx.Module):
    """Two hidden layers, and dropout behind the second."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.last(self.dropout(x))


def hints_of(groups):
    """For each refused group with a hint at inference mode: its first axis."""
    return {group.members[0] for group in groups.refused if "model.eval()" in group.reason}


def test_refused_groups_name_dropout_where_others_can_be_pruned():
    model = Dropped(nnx.Rngs(0))
    groups = jaxprune.channel_groups_nnx(model, X)
    assert set(groups) == {"(params/)?first/bias", "(params/)?first/kernel"}
    assert hints_of(groups) == {("second/kernel", 1), ("last/kernel", 0)}
    model.eval()
    assert not hints_of(jaxprune.channel_groups_nnx(model, X))


@pytest.mark.parametrize("wrap", (same, jax.jit, jax.checkpoint), ids=("plain", "jit", "remat"))
def test_random_numbers_are_followed_into_programs_that_are_called(wrap):
    def drop(x, key):
        noise = jax.random.bernoulli(key, 0.5, x.shape)
        return wrap(lambda x, noise: jnp.where(noise, x, 0.0))(x, noise)

    apply_fn, params = parallel(random=lambda h: drop(h, jax.random.key(0)), plain=same)
    params["table"] = on_device(np.ones((8, 4)))
    with_table = lambda p, x: (apply_fn(p, x), jnp.arange(8.0) @ p["table"])
    groups = jaxprune.channel_groups(with_table, params, X)
    assert hints_of(groups) == {("random_in", 1), ("random_out", 0)}
    assert any("table" in str(group) for group in groups.refused)
