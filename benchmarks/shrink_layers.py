"""Layers and functions that run in JAX and in PyTorch on the same weights, for `shrink_pairs`.

A layer is a NamedTuple: `module()` is its PyTorch module, and `apply(params, x)` does the same in
JAX. `params` are the entries of the module's state dict, in PyTorch's layout: kernels are (out, in)
or (out, in, height, width), and images are (batch, channels, height, width). The functions read
all sizes from the params, so they run unchanged after channels have been removed. `JaxNet` and
`torch_net` are networks of such layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]


class Dense(NamedTuple):
    """A linear layer."""

    n_in: int
    n_out: int
    bias: bool = True

    def module(self) -> Any:
        """`torch.nn.Linear`."""
        import torch

        return torch.nn.Linear(self.n_in, self.n_out, self.bias)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        y = x @ params["weight"].T
        return y + params["bias"] if self.bias else y


class Conv(NamedTuple):
    """A 2-D convolution with padding that keeps the image size, without a bias."""

    n_in: int
    n_out: int
    size: int = 3
    groups: int = 1

    def module(self) -> Any:
        """`torch.nn.Conv2d`."""
        import torch

        sizes = (self.n_in, self.n_out, self.size)
        return torch.nn.Conv2d(*sizes, padding=self.size // 2, groups=self.groups, bias=False)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        kernel = params["weight"]
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            [(self.size // 2, self.size // 2)] * 2,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=x.shape[1] // kernel.shape[1],
        )


class BatchNorm(NamedTuple):
    """Batch norm with running averages."""

    n: int

    def module(self) -> Any:
        """`torch.nn.BatchNorm2d`."""
        import torch

        return torch.nn.BatchNorm2d(self.n)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        mean, var = _by_channel(params["running_mean"]), _by_channel(params["running_var"])
        x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
        return x * _by_channel(params["weight"]) + _by_channel(params["bias"])


class GroupNorm(NamedTuple):
    """Group norm."""

    groups: int
    n: int

    def module(self) -> Any:
        """`torch.nn.GroupNorm`."""
        import torch

        return torch.nn.GroupNorm(self.groups, self.n)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX; a group keeps its size, so that whole groups can be removed."""
        batch, n, *image = x.shape
        per_group = self.n // self.groups
        y = x.reshape(batch, n // per_group, per_group, *image)
        y = _normalized(y, (2, 3, 4)).reshape(x.shape)
        return y * _by_channel(params["weight"]) + _by_channel(params["bias"])


class LayerNorm(NamedTuple):
    """Layer norm over the last axis."""

    n: int

    def module(self) -> Any:
        """`torch.nn.LayerNorm`."""
        import torch

        return torch.nn.LayerNorm(self.n)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        return _normalized(x, (-1,)) * params["weight"] + params["bias"]


class Embedding(NamedTuple):
    """A table of words."""

    n_words: int
    n: int

    def module(self) -> Any:
        """`torch.nn.Embedding`."""
        import torch

        return torch.nn.Embedding(self.n_words, self.n)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        return params["weight"][x]


class Lstm(NamedTuple):
    """One LSTM layer over (batch, time, channels)."""

    n_in: int
    n: int

    def module(self) -> Any:
        """`torch.nn.LSTM`."""
        import torch

        return torch.nn.LSTM(self.n_in, self.n, batch_first=True)

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The same in JAX."""
        recurrent = params["weight_hh_l0"]
        bias = params["bias_ih_l0"] + params["bias_hh_l0"]
        zeros = jnp.zeros((len(x), recurrent.shape[1]))

        def step(carry: Any, x: jax.Array) -> Any:
            cell, hidden = carry
            gates = x @ params["weight_ih_l0"].T + hidden @ recurrent.T + bias
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
            return (cell, hidden), hidden

        _, outputs = jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return outputs.swapaxes(0, 1)


def _by_channel(x: jax.Array) -> jax.Array:
    return x[:, None, None]


def _normalized(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = x.mean(axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5)


class JaxNet:
    """The layers and functions of a network in JAX."""

    relu, gelu, silu = map(staticmethod, (jax.nn.relu, jax.nn.gelu, jax.nn.silu))
    sigmoid, softmax, concat = map(staticmethod, (jax.nn.sigmoid, jax.nn.softmax, jnp.concatenate))

    def __init__(self, layers: Mapping[str, Any], params: Mapping[str, Any]):
        for name, layer in layers.items():
            setattr(self, name, functools.partial(layer.apply, params[name]))

    @staticmethod
    def outputs(lstm_outputs: jax.Array) -> jax.Array:
        """What an LSTM returns, without the last carry that PyTorch returns besides."""
        return lstm_outputs

    @staticmethod
    def halves(x: jax.Array, axis: int) -> list[jax.Array]:
        """Two equal parts of an axis."""
        return jnp.split(x, 2, axis)

    @staticmethod
    def pixel_shuffle(x: jax.Array) -> jax.Array:
        """Every four channels become the pixels of a square of 2 x 2."""
        batch, n, height, width = x.shape
        x = x.reshape(batch, n // 4, 2, 2, height, width).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(batch, n // 4, 2 * height, 2 * width)


def torch_net(forward: Callable[[Any, Any], Any], layers: Mapping[str, Any]) -> Any:
    """A PyTorch module in inference mode; `forward` gets the module and the inputs."""
    import torch

    class TorchNet(torch.nn.Module):
        relu, silu = map(staticmethod, (torch.relu, torch.nn.functional.silu))
        sigmoid, concat = map(staticmethod, (torch.sigmoid, torch.cat))
        softmax = staticmethod(functools.partial(torch.softmax, dim=-1))
        gelu = staticmethod(functools.partial(torch.nn.functional.gelu, approximate="tanh"))

        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer.module())

        def forward(self, x: Any) -> Any:
            return forward(self, x)

        @staticmethod
        def outputs(lstm_outputs: Any) -> Any:
            return lstm_outputs[0]

        @staticmethod
        def halves(x: Any, axis: int) -> Any:
            return torch.chunk(x, 2, axis)

        @staticmethod
        def pixel_shuffle(x: Any) -> Any:
            return torch.nn.functional.pixel_shuffle(x, 2)

    return TorchNet().eval()
