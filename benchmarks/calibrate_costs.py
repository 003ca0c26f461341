"""What calibration costs: SparseGPT beside PyTorch, and collecting inputs beside a forward pass."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, interleaved
from jaxprune import Moments, sparsegpt_kernel
from jaxprune._calibration.collection import Collection, ModelTrace
from jaxprune._recipe.choice import LeafRules

HAS_TORCH = importlib.util.find_spec("torch") is not None
_BLOCK, _DAMPING = 128, 0.01
Params = dict[str, jax.Array]


# SparseGPT of one kernel


def torch_sparsegpt(kernel: Any, gram: Any, target: dict[str, Any]) -> Any:
    """SparseGPT in PyTorch, with the loop of the authors' algorithm: column by column in blocks.

    Args:
      kernel: (out, in), a tensor.
      gram: (in, in), a tensor.
      target: `sparsity` or `nm`.
    """
    torch = importlib.import_module("torch")
    n_in = kernel.shape[1]
    w, hessian = kernel.clone(), 2 * gram
    dead = torch.diagonal(hessian) == 0
    hessian[dead, dead] = 1
    w[:, dead] = 0
    hessian.diagonal().add_(_DAMPING * torch.mean(torch.diagonal(hessian)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, n_in, _BLOCK):
        end = min(start + _BLOCK, n_in)
        block, square = w[:, start:end].clone(), upper[start:end, start:end]
        new, errors = torch.zeros_like(block), torch.zeros_like(block)
        diagonal = torch.diagonal(square)
        drop = torch.zeros_like(block, dtype=torch.bool)
        if "sparsity" in target:
            scores = block**2 / diagonal[None] ** 2
            ordered = torch.sort(scores.flatten())[0]
            drop = scores <= ordered[int(scores.numel() * target["sparsity"]) - 1]
        for i in range(end - start):
            if "nm" in target and i % target["nm"][1] == 0:
                n, m = target["nm"]
                scores = block[:, i : i + m] ** 2 / diagonal[None, i : i + m] ** 2
                drop.scatter_(1, i + torch.topk(scores, m - n, dim=1, largest=False)[1], True)
            column = block[:, i]
            kept = torch.where(drop[:, i], torch.zeros_like(column), column)
            error = (column - kept) / diagonal[i]
            block[:, i:] -= error[:, None] @ square[i, i:][None]
            new[:, i], errors[:, i] = kept, error
        w[:, start:end] = new
        w[:, end:] -= errors @ upper[start:end, end:]
    return w


def compare_with_torch(target: dict[str, Any], n_in: int, n_out: int) -> list[Row]:
    """Times of SparseGPT of one kernel, ours and, where it is installed, in PyTorch.

    The two kernels must be almost as good: at the threshold of a block, theirs drops one more
    weight, after which the others move differently.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * n_in, n_in), np.float32)
    for i in range(1, n_in):
        x[:, i] += 0.9 * x[:, i - 1]
    gram = x.T @ x
    kernel = rng.standard_normal((n_in, n_out), np.float32)
    moments = Moments(jnp.float32(len(x)), jnp.asarray(gram))
    ours = jnp.asarray(kernel)
    calls: dict[str, Callable[[], Any]] = {
        "jaxprune": lambda: sparsegpt_kernel(ours, moments, **target)
    }
    if HAS_TORCH:
        torch = importlib.import_module("torch")
        theirs, torch_gram = torch.from_numpy(kernel.T.copy()), torch.from_numpy(gram)
        calls["torch"] = lambda: torch_sparsegpt(theirs, torch_gram.clone(), target)
        errors = [
            output_error(gram, kernel, new)
            for new in (np.asarray(calls["jaxprune"]()[0]), calls["torch"]().numpy().T)
        ]
        if not 0.99 < errors[0] / errors[1] < 1.01:
            raise AssertionError(f"errors {errors} of jaxprune and torch differ")
    times = interleaved(calls)
    about = {"case": "sparsegpt", "target": str(target), "n_in": n_in, "n_out": n_out}
    return [{**about, "method": name, **times[name]._asdict()} for name in calls]


def output_error(gram: np.ndarray, kernel: np.ndarray, new: np.ndarray) -> float:
    """The squared error of the outputs on the calibration inputs."""
    difference = (new - kernel).astype(np.float64)
    return float(np.einsum("io,ij,jo->", difference, gram.astype(np.float64), difference))


# Collecting the inputs of a transformer block


def block(params: Params, x: jax.Array) -> jax.Array:
    """Attention and a gated MLP, without norms: (batch, time, embed)."""
    query, key, value = (jnp.einsum("bte,ehd->bthd", x, params[name]) for name in "qkv")
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / query.shape[-1] ** 0.5
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)
    x = x + jnp.einsum("bthd,hde->bte", mixed, params["out"])
    hidden = jax.nn.silu(x @ params["gate"]) * (x @ params["up"])
    return x + hidden @ params["down"]


def block_params(embed: int, heads: int, hidden: int) -> Params:
    """Random params of a block."""
    head = embed // heads
    shapes = {name: (embed, heads, head) for name in "qkv"} | {"out": (heads, head, embed)}
    shapes |= {"gate": (embed, hidden), "up": (embed, hidden), "down": (hidden, embed)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape) / embed**0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def compare_collecting(embed: int, heads: int, hidden: int, tokens: int) -> list[Row]:
    """Times of a forward pass, of the Gram products alone, and of collecting all moments.

    The block has four different inputs (of query, key and value; of out; of gate and up; of down),
    so the Gram products are four.
    """
    params = block_params(embed, heads, hidden)
    x = jax.random.normal(jax.random.key(1), (4, tokens // 4, embed))
    collection = {
        diagonal: Collection(trace, trace.leaves, diagonal)
        for trace in [ModelTrace.of(block, params, (x,), LeafRules())]
        for diagonal in (False, True)
    }
    leaves = list(params[name] for name in sorted(params))
    wide = jax.random.normal(jax.random.key(2), (tokens, hidden))

    @jax.jit
    def grams(x: jax.Array, wide: jax.Array) -> Any:
        rows = x.reshape(-1, embed)
        inputs = (rows, rows + 1, rows + 2, wide)  # or they would be one product
        return [jnp.matmul(i.T, i, precision=jax.lax.Precision.HIGHEST) for i in inputs]

    forward = jax.jit(block)
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(params, x),
        "grams": lambda: grams(x, wide),
        "collect": lambda: collection[False].add(None, leaves, (x,)),
        "collect diagonals": lambda: collection[True].add(None, leaves, (x,)),
    }
    times = interleaved(calls)
    about = {"case": "collect", "embed": embed, "hidden": hidden, "tokens": tokens}
    return [{**about, "method": name, **times[name]._asdict()} for name in calls]
