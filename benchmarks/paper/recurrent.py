"""The paper's recurrent networks: a stacked LSTM language model and GNMT, a translator.

An LSTM layer is one kernel of shape (inputs + hidden, 4 * hidden), as in the TensorFlow code of the
time, so that one mask covers it. What does not depend on the step before is one matrix product over
all steps; the rest is a `lax.scan`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

State = tuple[jax.Array, jax.Array]
Carry = tuple[list[State], jax.Array]

# A scan whose steps share their params, and draw nothing at random.
_SHARED: dict[str, Any] = {"variable_broadcast": "params", "split_rngs": {"params": False}}


def lstm_gates(gates: jax.Array, cell: jax.Array) -> State:
    """Output and cell of one step, from float[n, 4 * hidden] gates and the cell before."""
    enter, candidate, forget, leave = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget + 1.0) * cell + nn.sigmoid(enter) * jnp.tanh(candidate)
    return nn.sigmoid(leave) * jnp.tanh(cell), cell


class LSTMLayer(nn.Module):
    """float[n, time, inputs] to float[n, time, hidden], and the state after the last step.

    Attributes:
      hidden: units.
      backward: read the sequence from its end.
      scale: initial weights are uniform in [-scale, scale]; None for fan-in scaling.
    """

    hidden: int
    backward: bool = False
    scale: float | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, state: State | None = None, where: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        """Runs the layer.

        Args:
          x: inputs.
          state: output and cell to start from, zeros by default.
          where: bool[n, time]; where False, a padding step, the state passes unchanged.
        """
        n, time, inputs = x.shape
        kernel = self.param(
            "kernel", init_weights(self.scale), (inputs + self.hidden, 4 * self.hidden)
        )
        bias = self.param("bias", nn.initializers.zeros, (4 * self.hidden,))
        drive = x @ kernel[:inputs] + bias
        recur = kernel[inputs:]
        start = zero_state(n, self.hidden, x.dtype) if state is None else state
        there = jnp.ones((n, time), bool) if where is None else where

        def step(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            drive, there = now
            new = lstm_gates(drive + state[0] @ recur, state[1])
            new = tuple(jnp.where(there[:, None], a, b) for a, b in zip(new, state, strict=True))
            return (new[0], new[1]), new[0]

        steps = (drive.swapaxes(0, 1), there.swapaxes(0, 1))
        state, out = lax.scan(step, start, steps, reverse=self.backward)
        return out.swapaxes(0, 1), state


def init_weights(scale: float | None) -> Any:
    """Uniform in [-scale, scale]; without a scale, by fan-in."""
    if scale is None:
        return nn.initializers.lecun_normal()
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -scale, scale
    )


def zero_state(n: int, hidden: int, dtype: Any = jnp.float32) -> State:
    """Output and cell before the first step."""
    zeros = jnp.zeros((n, hidden), dtype)
    return zeros, zeros


class LanguageModel(nn.Module):
    """int[n, time] tokens to float[n, time, vocabulary] logits of the tokens after them.

    Embedding, stacked LSTM and softmax, as Zaremba et al. (2014).

    Attributes:
      vocabulary: number of tokens.
      hidden: units of every layer, and of the embedding unless that is given.
      n_layers: LSTM layers.
      embed: units of the embedding; 0 for `hidden`.
      tied: the softmax takes its weights from the embedding, whose width must be `hidden`.
      dropout: between layers, not through time.
      scale: of the initial weights.
    """

    vocabulary: int
    hidden: int
    n_layers: int = 2
    embed: int = 0
    tied: bool = False
    dropout: float = 0.0
    scale: float | None = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, states: list[State] | None = None, *, train: bool = False
    ) -> tuple[jax.Array, list[State]]:
        """Logits, and the state of every layer to go on from; `train` needs a `dropout` key."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        init = init_weights(self.scale or 0.1)
        embedding = nn.Embed(
            self.vocabulary, self.embed or self.hidden, embedding_init=init, name="embed"
        )
        x, after = drop(embedding(tokens)), []
        for i in range(self.n_layers):
            layer = LSTMLayer(self.hidden, scale=self.scale, name=f"lstm_{i}")
            x, state = layer(x, None if states is None else states[i])
            after.append(state)
            x = drop(x)
        if self.tied:
            bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
            return embedding.attend(x) + bias, after
        kernel_init = init_weights(self.scale)
        return nn.Dense(self.vocabulary, kernel_init=kernel_init, name="softmax")(x), after


class LSTMCell(nn.Module):
    """One step of an LSTM layer, for a decoder."""

    hidden: int
    scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, state: State) -> State:
        """Output and cell of this step."""
        inputs = jnp.concatenate([x, state[0]], -1)
        shape = (inputs.shape[-1], 4 * self.hidden)
        kernel = self.param("kernel", init_weights(self.scale), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        return lstm_gates(inputs @ kernel + bias, state[1])


class Attention(nn.Module):
    """Additive attention (Bahdanau et al., 2015), its score vector normed.

    Two projections, of the query and of the memory, are all its weights of two axes. The paper
    leaves them dense.
    """

    units: int
    scale: float | None = None

    def setup(self):
        init, shape = init_weights(self.scale), (self.units, self.units)
        self.query = self.param("query", init, shape)
        self.memory = self.param("memory", init, shape)
        self.score = self.param("score", nn.initializers.normal(1.0), (self.units,))
        self.gain = self.param("gain", nn.initializers.constant(self.units**0.5), ())
        self.bias = self.param("bias", nn.initializers.zeros, (self.units,))

    def keys(self, memory: jax.Array) -> jax.Array:
        """The projection of the memory, which is the same at every step."""
        return memory @ self.memory

    def __call__(self, query: jax.Array, memory: Memory) -> jax.Array:
        """float[n, units]: the memory as the query weighs it."""
        score = self.gain * self.score / jnp.linalg.norm(self.score)
        energy = jnp.tanh(memory.keys + (query @ self.query)[:, None] + self.bias) @ score
        weights = nn.softmax(jnp.where(memory.where, energy, -1e9))
        return jnp.einsum("nt,ntd->nd", weights, memory.values)


class Memory(NamedTuple):
    """What the decoder looks at: float[n, from, hidden] twice, and where it is no padding."""

    values: jax.Array
    keys: jax.Array
    where: jax.Array


class Translator(nn.Module):
    """GNMT (Wu et al., 2016): int[n, from] and int[n, to] tokens to logits of the next tokens.

    The encoder is one bidirectional LSTM layer and `n_layers - 1` more, the decoder `n_layers` with
    attention; residual connections from the third layer on. Token 0 is padding.

    Attributes:
      vocabularies: number of source and of target tokens.
      hidden: units of every layer and embedding.
      n_layers: layers of the encoder, counting the bidirectional one once, and of the decoder.
      dropout: of the inputs of each encoder layer, and of the embeddings.
      scale: of the initial weights; None for embeddings of variance 1 and fan-in scaling.
    """

    vocabularies: tuple[int, int]
    hidden: int
    n_layers: int = 4
    dropout: float = 0.0
    scale: float | None = None

    def setup(self):
        init = init_weights(self.scale or 3**0.5)
        self.source = nn.Embed(self.vocabularies[0], self.hidden, embedding_init=init)
        self.target = nn.Embed(self.vocabularies[1], self.hidden, embedding_init=init)
        self.forward = LSTMLayer(self.hidden, scale=self.scale)
        self.backward = LSTMLayer(self.hidden, backward=True, scale=self.scale)
        self.encoder = [LSTMLayer(self.hidden, scale=self.scale) for _ in range(self.n_layers - 1)]
        self.attention = Attention(self.hidden, scale=self.scale)
        self.decoder = [LSTMCell(self.hidden, scale=self.scale) for _ in range(self.n_layers)]
        self.softmax = nn.Dense(
            self.vocabularies[1], use_bias=False, kernel_init=init_weights(self.scale)
        )
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool = False) -> jax.Array:
        """Teacher-forced logits: at each place those of the token after `target` there."""
        memory = self.encode(source, train=train)
        x = self.drop(self.target(target), deterministic=not train)

        def step(self: Translator, carry: Carry, x: jax.Array) -> tuple[Carry, jax.Array]:
            return self.decode(carry, x, memory)

        scan = nn.scan(step, **_SHARED, in_axes=1, out_axes=1)
        _, out = scan(self, self.start(source.shape[0]), x)
        return self.softmax(out)

    def encode(self, source: jax.Array, *, train: bool = False) -> Memory:
        """Reads the source."""
        where = source != 0
        x = self.drop(self.source(source), deterministic=not train)
        both = [layer(x, where=where)[0] for layer in (self.forward, self.backward)]
        x = jnp.concatenate(both, -1)
        for i, layer in enumerate(self.encoder):
            y, _ = layer(self.drop(x, deterministic=not train), where=where)
            x = y + (x if i > 0 else 0)
        return Memory(x, self.attention.keys(x), where)

    def decode(self, carry: Carry, x: jax.Array, memory: Memory) -> tuple[Carry, jax.Array]:
        """One step: the carry after it, and the output of the topmost layer.

        Every layer also reads what the attention found: the lowest at the step before, the others
        at this one.
        """
        states, found = carry
        after = []
        for i, layer in enumerate(self.decoder):
            after.append(layer(jnp.concatenate([x, found], -1), states[i]))
            if i == 0:
                found = self.attention(after[0][0], memory)
            x = after[i][0] + (x if i > 1 else 0)
        return (after, found), x

    def start(self, n: int) -> Carry:
        """The carry of the decoder before its first step."""
        states = [zero_state(n, self.hidden) for _ in range(self.n_layers)]
        return states, jnp.zeros((n, self.hidden))

    def greedy(self, source: jax.Array, n_steps: int, begin: int) -> jax.Array:
        """int[n, n_steps]: the most likely token at each step, fed back; no end is looked for."""
        memory = self.encode(source)

        def step(self: Translator, carry: Any, _: None) -> tuple[Any, jax.Array]:
            states, token = carry
            states, out = self.decode(states, self.target(token), memory)
            token = self.softmax(out).argmax(-1).astype(jnp.int32)
            return (states, token), token

        n = source.shape[0]
        scan = nn.scan(step, **_SHARED, out_axes=1, length=n_steps)
        _, out = scan(self, (self.start(n), jnp.full((n,), begin, jnp.int32)), None)
        return out
