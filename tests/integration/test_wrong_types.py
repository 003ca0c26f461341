"""A law: whatever is passed for an argument, the error is one of jaxprune, and says what to do.

Every public function gets values of every kind in each of its arguments. It may accept a value. If
it raises, the error must come from jaxprune, not from inside JAX, NumPy, Flax or Python, and it
must read as plain sentences. What single errors say: `test_bad_*.py`.
"""

import functools
import pathlib
import re
import traceback

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxprune as jp
from bad_input import Tensor
from helpers import ones

HALF = jp.one_shot_schedule(0.5)
ADAM, SGD = optax.adam(1e-3), optax.sgd(0.1)
P = {"w": jnp.arange(1, 17, dtype=jnp.float32).reshape(4, 4), "b": jnp.ones((4,), jnp.float32)}
STATE = jp.prune(HALF).init(P)
DENSE = ADAM.init(P)
MASKS = jp.get_masks(STATE)
X = ones(2, 4)
LISTED = jp.prune([HALF, HALF]).init(P)
PACKED = jp.pack_matrix(np.eye(4, dtype=np.float32))
PRUNING = optax.chain(ADAM, jp.prune(HALF))
LAYERS = {"w": ones(4, 4), "v": ones(4, 4)}
LINEN = linen.Dense(4)


def total(params):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


TABLE = jp.sensitivity(total, P, [0.5])


def two_layers(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


PRODUCT_PARAMS = {"params": {"kernel": ones(4, 2)}}


class Product(linen.Module):
    """Fails on inputs that are no arrays; the layers of linen only warn."""

    @linen.compact
    def __call__(self, x):
        return x @ self.param("kernel", linen.initializers.ones, (4, 2))


@functools.cache
def groups():
    return jp.channel_groups(two_layers, LAYERS, X)


@functools.cache
def layer_inputs():
    return jp.layer_inputs(two_layers, LAYERS, X)


VALUES = {
    "none": None,
    "string": "x",
    "bytes": b"x",
    "int": 3,
    "float": 0.5,
    "bool": True,
    "numpy": np.float32(1.0),
    "array": ones(4, 4),
    "list": [1],
    "dict": {"w": 1.0},
    "unsorted": {"w": 1.0, 2: 3.0},
    "function": lambda: 0,
    "class": dict,
    "key": jax.random.key(0),
    "optimizer": SGD,
    "schedule": HALF,
    "state": STATE,
    "shape": jax.ShapeDtypeStruct((4, 4), jnp.float32),
    "tensor": Tensor(),
    "tensors": {"w": Tensor(), "b": Tensor()},
    "linen": LINEN,
    "nnx": nnx.Linear(4, 4, rngs=nnx.Rngs(0)),
    "equinox": eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0)),
}

CALLS = {
    "prune schedule": lambda v: jp.prune(v),
    "prune position": lambda v: jp.prune(HALF, v),
    "prune inner": lambda v: jp.prune(HALF, inner=v),
    "prune include": lambda v: jp.prune(HALF, include=v).init(P),
    "prune exclude": lambda v: jp.prune(HALF, exclude=v).init(P),
    "prune overrides": lambda v: jp.prune(HALF, overrides=v),
    "prune distribution": lambda v: jp.prune(HALF, distribution=v),
    "prune structure": lambda v: jp.prune(HALF, structure=v),
    "prune structures": lambda v: jp.prune(HALF, structure={"w": v}),
    "prune roles": lambda v: jp.prune(HALF, roles=v),
    "prune roles of a rule": lambda v: jp.prune(HALF, roles={"w": v}),
    "prune schedules": lambda v: jp.prune([HALF, v]),
    "choose_schedule opt_state": lambda v: jp.choose_schedule(v, 0),
    "choose_schedule index": lambda v: jp.choose_schedule(LISTED, v),
    "prune score": lambda v: jp.prune(HALF, score=v),
    "prune packed": lambda v: jp.prune(HALF, packed=v),
    "prune regrow": lambda v: jp.prune(HALF, regrow=v),
    "prune ties": lambda v: jp.prune(HALF, ties=v),
    "prune seed": lambda v: jp.prune(HALF, seed=v),
    "prune axis_name": lambda v: jp.prune(HALF, axis_name=v),
    "rigl final_sparsity": lambda v: jp.rigl(v, 10, inner=SGD),
    "rigl end_step": lambda v: jp.rigl(0.5, v, inner=SGD),
    "rigl inner": lambda v: jp.rigl(0.5, 10, inner=v),
    "rigl every": lambda v: jp.rigl(0.5, 10, inner=SGD, every=v),
    "rigl drop_fraction": lambda v: jp.rigl(0.5, 10, inner=SGD, drop_fraction=v),
    "rigl key": lambda v: jp.rigl(0.5, 10, inner=SGD, key=v),
    "rigl grow": lambda v: jp.rigl(0.5, 10, inner=SGD, grow=v),
    "set_ final_sparsity": lambda v: jp.set_(v, 10, inner=SGD),
    "static_sparse sparsity": lambda v: jp.static_sparse(v, inner=SGD),
    "keep_zeros inner": lambda v: jp.keep_zeros(v),
    "keep_zeros include": lambda v: jp.keep_zeros(SGD, include=v).init(P),
    "keep_zeros exclude": lambda v: jp.keep_zeros(SGD, exclude=v).init(P),
    "init": lambda v: jp.prune(HALF).init(v),
    "update updates": lambda v: jp.prune(HALF).update(v, STATE, P),
    "update state": lambda v: jp.prune(HALF).update(P, v, P),
    "update params": lambda v: jp.prune(HALF).update(P, STATE, v),
    "prune_params params": lambda v: jp.prune_params(v, 0.5),
    "prune_params sparsity": lambda v: jp.prune_params(P, v),
    "prune_params grads": lambda v: jp.prune_params(P, 0.5, score=jp.saliency, grads=v),
    "prune_params seed": lambda v: jp.prune_params(P, 0.5, score=jp.random_score, seed=v),
    "masks_from_params": lambda v: jp.masks_from_params(v),
    "apply_masks params": lambda v: jp.apply_masks(v, MASKS),
    "apply_masks masks": lambda v: jp.apply_masks(P, v),
    "get_masks": lambda v: jp.get_masks(v),
    "get_state": lambda v: jp.get_state(v),
    "check params": lambda v: jp.check(v, STATE),
    "check opt_state": lambda v: jp.check(P, v),
    "check done": lambda v: jp.check(P, STATE, done=v),
    "check params done": lambda v: jp.check(v, STATE, done=True),
    "metrics": lambda v: jp.metrics(v),
    "metrics missing_ok": lambda v: jp.metrics(STATE, missing_ok=v),
    "metrics of none": lambda v: jp.metrics(v, missing_ok=True),
    "metrics per_leaf": lambda v: jp.metrics(STATE, per_leaf=v),
    "plan params": lambda v: jp.plan(v, HALF),
    "plan schedule": lambda v: jp.plan(P, v),
    "summarize params": lambda v: jp.summarize(v),
    "summarize masks": lambda v: jp.summarize(P, v),
    "straight_through params": lambda v: jp.straight_through(v, MASKS),
    "straight_through masks": lambda v: jp.straight_through(P, v),
    "pack_masks": lambda v: jp.pack_masks(v),
    "unpack_masks": lambda v: jp.unpack_masks(v),
    "set_masks opt_state": lambda v: jp.set_masks(v, MASKS),
    "set_masks masks": lambda v: jp.set_masks(STATE, v),
    "splice tx": lambda v: jp.splice(v, P, DENSE),
    "splice params": lambda v: jp.splice(PRUNING, v, DENSE),
    "splice dense_opt_state": lambda v: jp.splice(PRUNING, P, v),
    "upgrade_state tx": lambda v: jp.upgrade_state(v, P, STATE),
    "upgrade_state params": lambda v: jp.upgrade_state(PRUNING, v, STATE),
    "upgrade_state old_state": lambda v: jp.upgrade_state(PRUNING, P, v),
    "topk_mask scores": lambda v: jp.topk_mask(v, 1),
    "topk_mask n_keep": lambda v: jp.topk_mask(X, v),
    "topk_mask ties": lambda v: jp.topk_mask(X, 1, ties=v),
    "topk_masks scores": lambda v: jp.topk_masks(v, [1]),
    "topk_masks n_keep": lambda v: jp.topk_masks([X], v),
    "topk_masks n_keep of all": lambda v: jp.topk_masks([X], v, pool="global"),
    "topk_masks pool": lambda v: jp.topk_masks([X], [1], pool=v),
    "AxisRoles roles": lambda v: jp.AxisRoles(v),
    "AxisRoles tuple": lambda v: jp.AxisRoles({"w": v}),
    "AxisRoles without": lambda v: jp.AxisRoles({}, v),
    "AxisRoles shapes": lambda v: jp.AxisRoles({}, {}, v),
    "NM n": lambda v: jp.NM(v, 4),
    "NM m": lambda v: jp.NM(2, v),
    "NM axis": lambda v: jp.NM(2, 4, axis=v),
    "Block shape": lambda v: jp.Block(v),
    "Block pooling": lambda v: jp.Block((1, 4), pooling=v),
    "Block balanced": lambda v: jp.Block((1, 4), balanced=v),
    "Channel axis": lambda v: jp.Channel(v),
    "Channel norm": lambda v: jp.Channel(norm=v),
    "acdc_schedule": lambda v: jp.acdc_schedule(v, 0, 10, 5),
    "cubic_schedule every": lambda v: jp.cubic_schedule(0.5, 0, 10, v),
    "one_shot_schedule step": lambda v: jp.one_shot_schedule(0.5, v),
    "linear_schedule end_step": lambda v: jp.linear_schedule(0.5, 0, v),
    "polynomial_schedule power": lambda v: jp.polynomial_schedule(0.5, 0, 10, power=v),
    "from_optax_schedule": lambda v: jp.from_optax_schedule(v, 0, 10, 5),
    "SparsitySchedule targets": lambda v: jp.SparsitySchedule(0, 10, 10, v),
    "fires": lambda v: HALF.fires(v),
    "index": lambda v: HALF.index(v),
    "sparsity": lambda v: HALF.sparsity(v),
    "min_density density": lambda v: jp.min_density(v),
    "min_density distribution": lambda v: jp.min_density(0.1, v),
    "per_slice rules": lambda v: jp.per_slice(v),
    "per_slice distribution": lambda v: jp.per_slice("w", v),
    "Accumulated": lambda v: jp.Accumulated("sum", v),
    "magnitude": lambda v: jp.magnitude(v),
    "saliency params": lambda v: jp.saliency(v, X),
    "saliency grads": lambda v: jp.saliency(X, v),
    "gradient_magnitude": lambda v: jp.gradient_magnitude(X, v),
    "random_score key": lambda v: jp.random_score(X, None, v),
    "check_agreement": lambda v: jp.check_agreement(v),
    "pack_matrix w": lambda v: jp.pack_matrix(v),
    "pack_matrix mask": lambda v: jp.pack_matrix(X, v),
    "pack_matrix block": lambda v: jp.pack_matrix(X, block=v),
    "pack_matrix batch": lambda v: jp.pack_matrix(X, batch=v),
    "unpack_matrix": lambda v: jp.unpack_matrix(v),
    "packed_matmul packed": lambda v: jp.packed_matmul(v, X),
    "packed_matmul x": lambda v: jp.packed_matmul(PACKED, v),
    "pack_kernels params": lambda v: jp.pack_kernels(v),
    "pack_kernels include": lambda v: jp.pack_kernels(P, v),
    "pack_linear": lambda v: jp.pack_linear(v),
    "packed_apply apply_fn": lambda v: jp.packed_apply(v, {"kernel": PACKED}, {"params": {}}, X),
    "packed_apply packed": lambda v: jp.packed_apply(LINEN.apply, v, {"params": {}}, X),
    "load_packed": lambda v: jp.load_packed(v),
    "load": lambda v: jp.load(v),
    "load_metadata": lambda v: jp.load_metadata(v),
    "load max_bytes": lambda v: jp.load("a.zst", max_bytes=v),
    "load like": lambda v: jp.load("a.zst", like=v),
    "save path": lambda v: jp.save(v, P),
    "save params": lambda v: jp.save("b.zst", v),
    "save masks": lambda v: jp.save("b.zst", P, masks=v),
    "save metadata": lambda v: jp.save("b.zst", P, metadata=v),
    "save order": lambda v: jp.save("b.zst", P, order=v),
    "save_safetensors metadata": lambda v: jp.save_safetensors("b", P, metadata=v),
    "save_safetensors order": lambda v: jp.save_safetensors("b", P, order=v),
    "save level": lambda v: jp.save("b.zst", P, level=v),
    "save_csr folder": lambda v: jp.save_csr(v, P),
    "save_csr params": lambda v: jp.save_csr("csr", v),
    "save_safetensors path": lambda v: jp.save_safetensors(v, P),
    "save_safetensors params": lambda v: jp.save_safetensors("c.safetensors", v),
    "to_bcoo": lambda v: jp.to_bcoo(v),
    "to_bcsr": lambda v: jp.to_bcsr(v),
    "to_csr": lambda v: jp.to_csr(v),
    "sensitivity loss_fn": lambda v: jp.sensitivity(v, P, [0.5]),
    "sensitivity params": lambda v: jp.sensitivity(total, v, [0.5]),
    "sensitivity sparsities": lambda v: jp.sensitivity(total, P, v),
    "sensitivity sparsity": lambda v: jp.sensitivity(total, P, [v]),
    "sensitivity groups": lambda v: jp.sensitivity(total, P, [0.5], groups=v),
    "sensitivity include": lambda v: jp.sensitivity(total, P, [0.5], include=v),
    "sensitivity structure": lambda v: jp.sensitivity(total, P, [0.5], structure=v),
    "sensitivity score": lambda v: jp.sensitivity(total, P, [0.5], score=v),
    "sensitivity roles": lambda v: jp.sensitivity(total, P, [0.5], roles=v),
    "sensitivity grads": lambda v: jp.sensitivity(total, P, [0.5], grads=v),
    "sparsities_for sensitivity": lambda v: jp.sparsities_for(v, 0.5),
    "sparsities_for target": lambda v: jp.sparsities_for(TABLE, v),
    "wanda params": lambda v: jp.wanda(v, {"w": X}, 0.5),
    "wanda inputs": lambda v: jp.wanda(P, v, 0.5),
    "wanda input": lambda v: jp.wanda(P, {"w": v}, 0.5),
    "wanda sparsity": lambda v: jp.wanda(P, {"w": X}, v),
    "wanda nm": lambda v: jp.wanda(P, {"w": X}, nm=v),
    "wanda overrides": lambda v: jp.wanda(P, {"w": X}, 0.5, overrides=v),
    "wanda override": lambda v: jp.wanda(P, {"w": X}, 0.5, overrides={"w": v}),
    "wanda roles": lambda v: jp.wanda(P, {"w": X}, 0.5, roles=v),
    "wanda_kernel kernel": lambda v: jp.wanda_kernel(v, X, 0.5),
    "wanda_kernel inputs": lambda v: jp.wanda_kernel(P["w"], v, 0.5),
    "sparsegpt params": lambda v: jp.sparsegpt(v, {"w": X}, 0.5),
    "sparsegpt_kernel kernel": lambda v: jp.sparsegpt_kernel(v, X, 0.5),
    "sparsegpt_kernel block_size": lambda v: jp.sparsegpt_kernel(P["w"], X, 0.5, block_size=v),
    "sparsegpt_kernel damping": lambda v: jp.sparsegpt_kernel(P["w"], X, 0.5, damping=v),
    "moments": lambda v: jp.moments(v),
    "layer_inputs apply_fn": lambda v: jp.layer_inputs(v, LAYERS, X),
    "layer_inputs variables": lambda v: jp.layer_inputs(two_layers, v, X),
    "layer_inputs batch": lambda v: jp.layer_inputs(two_layers, LAYERS, v),
    "layer_inputs batches": lambda v: jp.layer_inputs(two_layers, LAYERS, batches=v),
    "layer_inputs include": lambda v: jp.layer_inputs(two_layers, LAYERS, X, include=v),
    "layer_inputs progress": lambda v: jp.layer_inputs(two_layers, LAYERS, X, progress=v),
    "layer_inputs diagonal": lambda v: jp.layer_inputs(two_layers, LAYERS, X, diagonal=v),
    "layer_inputs_nnx model": lambda v: jp.layer_inputs_nnx(v, X),
    "layer_inputs_nnx batch": lambda v: jp.layer_inputs_nnx(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), v),
    "load_inputs": lambda v: jp.load_inputs(v),
    "save_inputs path": lambda v: jp.save_inputs(v, jp.LayerInputs({}, jp.AxisRoles({}))),
    "save_inputs inputs": lambda v: jp.save_inputs("inputs.npz", v),
    "prune_sequentially method": lambda v: jp.prune_sequentially(
        v, two_layers, LAYERS, X, sparsity=0.5
    ),
    "prune_sequentially apply_fn": lambda v: jp.prune_sequentially(
        jp.wanda, v, LAYERS, X, sparsity=0.5
    ),
    "prune_sequentially blocks": lambda v: jp.prune_sequentially(
        jp.wanda, two_layers, LAYERS, X, sparsity=0.5, blocks=v
    ),
    "linen_inputs model": lambda v: jp.linen_inputs(
        v, {"params": {"kernel": X.T @ X, "bias": P["b"]}}, X
    ),
    "linen_inputs variables": lambda v: jp.linen_inputs(LINEN, v, X),
    "nnx_inputs": lambda v: jp.nnx_inputs(v, X),
    "shrink apply_fn": lambda v: jp.shrink(v, LAYERS, X),
    "shrink variables": lambda v: jp.shrink(two_layers, v, X),
    "shrink example_inputs": lambda v: jp.shrink(two_layers, LAYERS, v),
    "shrink rtol": lambda v: jp.shrink(two_layers, LAYERS, X, rtol=v),
    "shrink_nnx": lambda v: jp.shrink_nnx(v, X),
    "shrink allow": lambda v: jp.shrink(two_layers, LAYERS, X, allow=v),
    "channel_groups allow": lambda v: jp.channel_groups(two_layers, LAYERS, X, allow=v),
    "shrink along": lambda v: jp.shrink(two_layers, LAYERS, X, along=v),
    "resize_nnx model": lambda v: jp.resize_nnx(v, LAYERS),
    "resize_nnx state": lambda v: jp.resize_nnx(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), v),
    "resize_linen model": lambda v: jp.resize_linen(v, PRODUCT_PARAMS, X),
    "resize_linen variables": lambda v: jp.resize_linen(Product(), v, X),
    "resize_linen example_inputs": lambda v: jp.resize_linen(Product(), PRODUCT_PARAMS, v),
    "activation_score groups": lambda v: jp.activation_score(v, LAYERS, layer_inputs()),
    "activation_score params": lambda v: jp.activation_score(groups(), v, layer_inputs()),
    "activation_score param": lambda v: jp.activation_score(
        groups(), {"w": v, "v": v}, layer_inputs()
    ),
    "activation_score inputs": lambda v: jp.activation_score(groups(), LAYERS, v),
    "shrunk_apply": lambda v: jp.shrunk_apply(v, LAYERS, X),
    "channel_groups apply_fn": lambda v: jp.channel_groups(v, LAYERS, X),
    "channel_groups variables": lambda v: jp.channel_groups(two_layers, v, X),
    "channel_groups example_inputs": lambda v: jp.channel_groups(two_layers, LAYERS, v),
    "channel_groups_nnx": lambda v: jp.channel_groups_nnx(v, X),
    "axis_roles apply_fn": lambda v: jp.axis_roles(v, LAYERS, X),
    "axis_roles variables": lambda v: jp.axis_roles(two_layers, v, X),
    "axis_roles inputs": lambda v: jp.axis_roles(two_layers, LAYERS, v),
    "axis_roles_nnx model": lambda v: jp.axis_roles_nnx(v, X),
    "axis_roles_nnx inputs": lambda v: jp.axis_roles_nnx(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), v),
}

# Messages of Python about objects that do not have what an operation needs.
OF_PYTHON = re.compile(
    "has no attribute|not subscriptable|not callable|not iterable|unsupported operand|is ambiguous|"
    "positional argument|unexpected keyword|not supported between|[Ee]rror interpreting"
)
# Code of the user that fails, or that a message quotes: the error of that code is all there is.
QUOTES = ("shrink", "channel_groups", "shrunk_apply", "packed_apply", "axis_roles")
QUOTES += ("sensitivity score", "layer_inputs", "prune_sequentially", "resize_linen")
QUOTES += ("from_optax_schedule",)


CALLED = (
    "packed_apply apply_fn",
    "shrunk_apply",
    "prune_sequentially method",
)  # with functions that do not take two arguments
FAILS_ITSELF = {(name, kind) for name in CALLED for kind in ("function", "equinox")}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jp.save("a.zst", P)
    return tmp_path


def assert_is_ours(case, error):
    """Checks that an error was raised in jaxprune, and reads as plain sentences."""
    if "jax_numpy_dtype_promotion=strict" in str(error):  # what the user has asked JAX for
        return
    raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    case = f"{case}: {type(error).__name__}: {error}"
    assert "jaxprune" in raised_in.parent.parts, case
    assert str(error).endswith((".", "?")), case
    assert not re.search("\n|  |Tracer|0x", str(error).replace("at 0x", "")), case
    assert case.startswith(QUOTES) or not OF_PYTHON.search(str(error)), case


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore:in the future the `.dtype` attribute")  # of NumPy 2.0
def test_no_error_comes_from_below_jaxprune(folder, name):
    for kind, value in VALUES.items():
        if (name, kind) in FAILS_ITSELF:
            continue
        try:
            CALLS[name](value)
        except (TypeError, ValueError, OSError) as error:
            assert_is_ours(f"{name} = {kind}", error)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_error_about_a_traced_value_comes_from_below_jaxprune(folder, name):
    groups(), layer_inputs()  # what is cached must not hold values of a trace
    for dtype in (jnp.float32, jnp.int32):
        for shape in ((), (4, 4)):
            value = jax.ShapeDtypeStruct(shape, dtype)
            try:
                jax.eval_shape(lambda v: (CALLS[name](v), None)[1], value)
            except (TypeError, ValueError, OSError) as error:
                assert_is_ours(f"{name} = {value}", error)


# Values, and classes of results, which nobody calls.
NOT_CALLED = {"AxisGroup", "ChannelGroups", "Distribution", "Moments", "PackedMatrix", "Progress"}
NOT_CALLED |= {"LeafReport", "PoolReport", "PruneState", "Report", "Sensitivity", "ShrinkReport"}
NOT_CALLED |= {"Unstructured", "er", "erk", "global_pool", "movement", "normalized_pool", "uniform"}
NOT_CALLED |= {"LayerInputs", "equinox_roles", "l2_pool", "torch_roles"}
NOT_CALLED |= {"FileMetadata", "LeafShape", "Pools", "Structure"}


def test_every_public_function_takes_part():
    assert set(jp.__all__) - {name.split()[0] for name in CALLS} == NOT_CALLED
