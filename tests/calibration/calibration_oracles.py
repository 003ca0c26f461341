"""Slow oracles of Wanda and SparseGPT in NumPy, and kernels and inputs to prune.

The oracles follow the papers step by step: a stable sort per output for Wanda, and for SparseGPT
the inverse of the Hessian of the inputs that are left, anew at each input, in float64.
"""

from fractions import Fraction

import numpy as np

from helpers import half_up


def target_of(sparsity, nm):
    return Fraction(nm[1] - nm[0], nm[1]) if nm else Fraction(str(sparsity))


def best(scores, n_keep, weights=None):
    """A mask of the largest scores; of those that are 0 the largest weights; of equal the first."""
    weights = np.zeros(len(scores)) if weights is None else abs(np.asarray(weights))
    ties = np.where(np.asarray(scores) == 0, weights, 0)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -ties[i], i))
    return np.isin(np.arange(len(scores)), order[:n_keep])


def wanda_oracle(kernel, inputs, sparsity, nm=None):
    norms = np.sqrt(np.sum(np.square(inputs, dtype=np.float32), axis=0))
    scores = np.abs(kernel.astype(np.float32)) * norms[:, None]
    mask = np.zeros(kernel.shape, bool)
    n_in = len(kernel)
    size = nm[1] if nm else n_in
    n_keep = nm[0] if nm else n_in - half_up(target_of(sparsity, nm) * n_in)
    for output in range(kernel.shape[1]):
        for start in range(0, n_in, size):
            group = slice(start, start + size)
            mask[group, output] = best(scores[group, output], n_keep, kernel[group, output])
    return np.where(mask, kernel, 0), mask


def sparsegpt_oracle(kernel, inputs, sparsity, nm=None, block_size=128, damping=0.01):
    w, x = kernel.astype(np.float64), inputs.astype(np.float64)
    hessian = 2 * x.T @ x
    live = np.diag(hessian) > 0
    hessian += np.diag(1.0 - live)
    hessian += damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    n_in, n_out = w.shape
    target, mask = target_of(sparsity, nm), np.ones(w.shape, bool)

    def saliency(i):
        return np.abs(w[i]) / np.sqrt(np.linalg.inv(hessian[i:, i:])[0, 0]) * live[i]

    for start in range(0, n_in, block_size):
        end = min(start + block_size, n_in)
        size = nm[1] if nm else end - start
        for first in range(start, end, size):
            group = slice(first, first + size)
            scores = np.array([saliency(i) for i in range(first, first + size)])
            if nm:
                columns = zip(scores.T, w[group].T, strict=True)
                mask[group] = np.stack([best(s, nm[0], c) for s, c in columns], axis=1)
            else:
                n_drop = half_up(target * end * n_out) - half_up(target * start * n_out)
                flat = scores.reshape(-1)
                kept = best(flat, flat.size - n_drop, w[group].reshape(-1))
                mask[group] = kept.reshape(scores.shape)
            for i in range(first, first + size):
                inverse = np.linalg.inv(hessian[i:, i:])
                dropped = np.where(mask[i], 0, w[i])
                w[i:] -= inverse[:, :1] * dropped / inverse[0, 0]
    return np.where(mask, w, 0), mask


def correlated(n_rows, n_in, key=0):
    """Inputs whose neighbours are correlated; a few are 20 times as large."""
    rng = np.random.default_rng(key)
    x = rng.normal(size=(n_rows, n_in)) @ rng.normal(size=(n_in, n_in)) / np.sqrt(n_in)
    x[:, rng.permutation(n_in)[: max(n_in // 16, 1)]] *= 20
    return x.astype(np.float32)


def normal(*shape, key=1, dtype=np.float32):
    return np.random.default_rng(key).normal(size=shape).astype(dtype)
