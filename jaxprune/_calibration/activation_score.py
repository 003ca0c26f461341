"""`activation_score`: scores of coupled channels from the inputs of the layers that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base.arguments import BadValue, shown
from jaxprune._base.paths import leaves_with_paths, listed, rule_for, shown_path
from jaxprune._calibration.checks import check_kernel
from jaxprune._calibration.inputs_of_leaves import LayerInputs
from jaxprune._calibration.kernel_view import KernelView
from jaxprune._calibration.moments import layer_squares
from jaxprune._recipe.coupled import Coupled

_PREFIX = "params/"  # of the paths in all variables of a linen model


class ChannelScore:
    """A score function with one number for each channel, which was computed before.

    Every weight of a channel gets the score of the channel over the root of the number of its
    weights, so that their Euclidean norm, over all leaves of the group, is the score.

    Args:
      structures: path of a leaf -> its part in a group of coupled channels.
      weights: name of a group -> the score of each weight of each of its channels.
      without: name of a group -> why it has no scores.
    """

    elementwise = False
    reads_grads = False

    def __init__(
        self,
        structures: Mapping[str, Coupled],
        weights: Mapping[str, jax.Array],
        without: Mapping[str, str],
    ):
        self._structures, self._weights, self._without = structures, weights, without

    def __repr__(self) -> str:
        return "activation_score(...)"

    def __call__(self, params: Any, grads: Any, key: Any, path: str) -> jax.Array:
        """The score of each weight of the leaf at `path`."""
        del grads, key
        structure = self._structures.get(path.removeprefix(_PREFIX))
        if structure is None:
            raise ValueError(
                f"{shown_path(path)}: activation_score has scores of channels only, and this leaf "
                "is in none of the groups of channels. Prune the leaves of these groups, "
                "include=tuple(groups), with structure=groups."
            )
        if reason := self._without.get(structure.group):
            raise BadValue(
                f"{shown_path(path)}: activation_score has no scores for its channels: {reason}.",
                "Exclude this group of channels with {exclude}, or collect the missing inputs.",
                exclude=rule_for(path),
            )
        along = _by_index(structure, self._weights[structure.group])
        return jax.lax.broadcast_in_dim(along, params.shape, (structure.axis,))


def activation_score(groups: Any, params: Any, inputs: LayerInputs) -> ChannelScore:
    """A score of channels: how much the next layers' outputs change without a channel.

    For one input x of a dense layer, the sum over the data of the squared change of all its outputs
    is the sum of x**2, times the sum of the squares of the weights that x is multiplied with. The
    score of a channel is the root of this number, summed over all weights that read the channel, in
    all layers. This is the Euclidean norm of their scores in Wanda (Sun et al. 2023,
    arXiv:2306.11695). Wanda-sp, to which An et al. 2024 (arXiv:2312.11983) compare their method, is
    similar; their code takes the mean of these scores in place of the norm. The norm of the weights
    that compute a channel, the score by `magnitude`, depends neither on the data nor on what reads
    the channel.

    The scores stay as they are computed here. In gradual pruning, compute them again from time to
    time: `prune` with new scores continues from the old optimizer state.

    Args:
      groups: what `channel_groups` or `channel_groups_nnx` returns.
      params: the tree that the groups are from, or the params in it.
      inputs: what `layer_inputs` returns for the same model; `diagonal=True` is enough.

    Returns:
      A score function for `prune` and `prune_params`. Pass it with `structure=groups` and
      `include=tuple(groups)`. It raises a ValueError for a leaf whose channels have no scores,
      because the inputs of a leaf that reads them were not collected.

    Raises:
      TypeError: `groups` or `inputs` are something else, or a leaf of the groups is not an array of
        real floating point numbers.
      ValueError: no group can be scored, a leaf of the groups is not in the params, or the inputs
        do not fit its shape or are not finite.

    Example:
      >>> import jax, jax.numpy as jnp, jaxprune
      >>> def mlp(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"w": jnp.array([[3.0, 0.0], [0.0, 1.0]]), "v": jnp.array([[1.0], [2.0]])}
      >>> x = jnp.array([[1.0, 5.0]])  # the second input is the larger one
      >>> groups = jaxprune.channel_groups(mlp, params, x)
      >>> score = activation_score(groups, params, jaxprune.layer_inputs(mlp, params, x))
      >>> rules = {"structure": groups, "include": tuple(groups)}
      >>> jaxprune.prune_params(params, 0.5, score=score, **rules)[0]["w"].tolist()
      [[0.0, 0.0], [0.0, 1.0]]
      >>> jaxprune.prune_params(params, 0.5, **rules)[0]["w"].tolist()  # by the weights
      [[3.0, 0.0], [0.0, 0.0]]
    """
    _check_arguments(groups, inputs)
    leaves = {_short(path): leaf for path, leaf in zip(*leaves_with_paths(params)[:2], strict=True)}
    structures = _structures(groups, leaves)
    squares, without = _squares(groups, leaves, inputs)
    sizes = _sizes(structures, leaves)
    weights = {
        name: jnp.sqrt(total / np.maximum(sizes[name], 1).astype(np.float32))
        for name, total in squares.items()
        if name in sizes and name not in without
    }
    if not weights:
        raise ValueError(
            f"activation_score: no group can be scored: {'; '.join(without.values())}. Pass the "
            "layer_inputs of the model that the groups are from."
        )
    return ChannelScore(structures, weights, without)


def _check_arguments(groups: Any, inputs: Any) -> None:
    if not hasattr(groups, "readers"):
        raise TypeError(
            f"activation_score: groups must be what channel_groups returns, got {shown(groups)}. "
            "Pass jaxprune.channel_groups(apply_fn, variables, x)."
        )
    if not isinstance(inputs, LayerInputs):
        raise TypeError(
            f"activation_score: inputs must be what layer_inputs returns, got {shown(inputs)}. "
            "Pass jaxprune.layer_inputs(apply_fn, variables, x, diagonal=True)."
        )


def _short(path: str) -> str:
    return path.removeprefix(_PREFIX)


def _structures(groups: Any, leaves: Mapping[str, Any]) -> dict[str, Coupled]:
    """Path of each pruned leaf -> its structure."""
    structures = {}
    for path in leaves:
        structure = groups.get(f"(params/)?{rule_for(path)}")
        if structure is not None:
            structures[path] = structure
    readers = [path for path, _ in groups.readers]
    missing = [path for path in readers if path not in leaves]
    if missing or len(structures) < len(groups):
        raise ValueError(
            "activation_score: params must have all leaves of the groups, but "
            f"{listed(missing) or 'leaves to prune'} are missing. Pass the params that "
            "channel_groups was called with."
        )
    for path in (*structures, *readers):
        check_kernel(path, leaves[path])
    return structures


def _squares(
    groups: Any, leaves: Mapping[str, Any], inputs: LayerInputs
) -> tuple[dict[str, jax.Array], dict[str, str]]:
    """The squared score of each channel of each group, and the groups that have none, with why."""
    paths = {_short(path): path for path in inputs}
    reasons = {_short(path): reason for path, reason in inputs.without.items()}
    names = {structure.group for structure in groups.values()}
    without = dict.fromkeys(
        names - {reader.group for _, reader in groups.readers}, "no weights only read them"
    )
    squares: dict[str, jax.Array] = {}
    for path, reader in groups.readers:
        if path not in paths:
            reason = reasons.get(path, "they were not collected")
            without[reader.group] = f"{shown_path(path)} reads them, without inputs: {reason}"
            continue
        scores = reader.unit_scores(_wanda_scores(path, leaves[path], inputs, paths[path]))
        squares[reader.group] = squares.get(reader.group, jnp.float32(0)) + scores**2
    return squares, without


def _wanda_scores(path: str, leaf: Any, inputs: LayerInputs, key: str) -> jax.Array:
    """|w| times the norm of its input, for each weight of a leaf; float32."""
    roles = inputs.roles[key]
    if len(roles) != np.ndim(leaf):
        raise ValueError(
            f"{shown_path(path)}: shape {np.shape(leaf)} has {np.ndim(leaf)} axes, but its inputs "
            f"were collected for {len(roles)}. Pass layer_inputs of the same params."
        )
    view = KernelView(tuple(np.shape(leaf)), roles)
    view, squares = layer_squares(path, inputs[key], view)
    magnitudes = jnp.abs(view.matrices(jnp.asarray(leaf)).astype(jnp.float32))
    return view.leaf(magnitudes * jnp.sqrt(squares)[..., None])


def _sizes(structures: Mapping[str, Coupled], leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """How many weights each channel of each group has, over all leaves."""
    sizes: dict[str, np.ndarray] = {}
    for path, structure in structures.items():
        shape = np.shape(leaves[path])
        unit_of = np.array(structure.unit_of)
        indices = np.bincount(unit_of[unit_of >= 0], minlength=structure.n)
        per_index = np.prod(shape) // max(shape[structure.axis], 1)
        sizes[structure.group] = sizes.get(structure.group, 0) + per_index * indices
    return sizes


def _by_index(structure: Coupled, of_units: jax.Array) -> jax.Array:
    """One number for each index of the axis; 0 for indices that belong to no channel."""
    unit_of = np.array(structure.unit_of)
    return jnp.where(unit_of < 0, 0, of_units[np.maximum(unit_of, 0)])
