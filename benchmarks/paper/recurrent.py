"""The recurrent networks of the paper: a stacked LSTM language model, and the translator GNMT.

An LSTM layer has a single kernel of shape (inputs + hidden, 4 * hidden), as in the TensorFlow code
of that time, so one mask covers it. The product with the inputs is computed for all steps at once;
the recurrent part is a `lax.scan`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

State = tuple[jax.Array, jax.Array]
Carry = tuple[list[State], jax.Array]

# A scan whose steps share their params and use no random numbers.
_SHARED: dict[str, Any] = {"variable_broadcast": "params", "split_rngs": {"params": False}}


def lstm_gates(gates: jax.Array, cell: jax.Array) -> State:
    """Output and cell of one step, from float[n, 4 * hidden] gates and the previous cell."""
    enter, candidate, forget, leave = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(forget + 1.0) * cell + nn.sigmoid(enter) * jnp.tanh(candidate)
    return nn.sigmoid(leave) * jnp.tanh(cell), cell


class LSTMLayer(nn.Module):
    """An LSTM layer over a sequence.

    Attributes:
      hidden: number of units.
      backward: whether to read the sequence from its end.
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
          x: float[n, time, inputs].
          state: output and cell before the first step; zeros by default.
          where: bool[n, time], False at padding, where the state does not change.

        Returns:
          The outputs, float[n, time, hidden], and the state after the last step.
        """
        n, time, inputs = x.shape
        kernel = self.param(
            "kernel", init_weights(self.scale), (inputs + self.hidden, 4 * self.hidden)
        )
        bias = self.param("bias", nn.initializers.zeros, (4 * self.hidden,))
        drive = x @ kernel[:inputs] + bias
        recur = kernel[inputs:]
        start = zero_state(n, self.hidden, drive.dtype) if state is None else state
        is_token = jnp.ones((n, time), bool) if where is None else where

        def step(state: State, inputs_now: tuple[jax.Array, jax.Array]) -> tuple[State, jax.Array]:
            drive, is_token = inputs_now
            new = lstm_gates(drive + state[0] @ recur, state[1])
            new = tuple(jnp.where(is_token[:, None], a, b) for a, b in zip(new, state, strict=True))
            return (new[0], new[1]), new[0]

        steps = (drive.swapaxes(0, 1), is_token.swapaxes(0, 1))
        state, out = lax.scan(step, start, steps, reverse=self.backward)
        return out.swapaxes(0, 1), state


def init_weights(scale: float | None) -> Any:
    """An initializer: uniform in [-scale, scale], or scaled by fan-in if `scale` is None."""
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
    """Embedding, stacked LSTM and softmax, as in Zaremba et al. (2014).

    Attributes:
      vocabulary: number of tokens.
      hidden: units of every layer, and width of the embedding if `embed` is 0.
      n_layers: number of LSTM layers.
      embed: width of the embedding; 0 for `hidden`.
      tied: whether the softmax shares the weights of the embedding, whose width must be `hidden`.
      dropout: rate of dropout between layers; there is none through time.
      scale: initial weights are uniform in [-scale, scale]; None for 0.1 in the embedding, and
        fan-in scaling elsewhere.
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
        """Logits of the next token at each position, and the state of every layer at the end.

        Args:
          tokens: int[n, time].
          states: state of every layer before the first token; zeros by default.
          train: whether to drop out; needs a `dropout` key.
        """
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
    """A single step of an LSTM layer, for the decoder."""

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
    """Additive attention (Bahdanau et al., 2015) with a normalized score vector.

    Its only kernels are the projections of the query and of the memory, which the paper does not
    prune.
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
        """Projects the memory; the result is the same at every step."""
        return memory @ self.memory

    def __call__(self, query: jax.Array, memory: Memory) -> jax.Array:
        """The mean of the memory, weighted by attention to the query: float[n, units]."""
        score = self.gain * self.score / jnp.linalg.norm(self.score)
        energy = jnp.tanh(memory.keys + (query @ self.query)[:, None] + self.bias) @ score
        weights = nn.softmax(jnp.where(memory.where, energy, -1e9))
        return jnp.einsum("nt,ntd->nd", weights, memory.values)


class Memory(NamedTuple):
    """The encoded source: values and keys, float[n, from, hidden], and where it is not padding."""

    values: jax.Array
    keys: jax.Array
    where: jax.Array


class Translator(nn.Module):
    """GNMT (Wu et al., 2016).

    The encoder has a bidirectional LSTM layer and `n_layers - 1` further layers. The decoder has
    `n_layers` layers and attention. Residual connections start at the third layer. Token 0 is
    padding. If the bidirectional layer is the only one, each direction has half of the units.

    Attributes:
      vocabularies: number of source tokens and of target tokens.
      hidden: units of every layer, and width of the embeddings.
      n_layers: layers of the encoder, counting the bidirectional one once, and of the decoder.
      dropout: rate of dropout on the inputs of each encoder layer and on the embeddings.
      scale: initial weights are uniform in [-scale, scale]; None for embeddings with variance 1
        and fan-in scaling of the kernels.
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
        n_forward = n_backward = self.hidden
        if self.n_layers == 1:  # the memory is as wide as the other layers
            n_forward, n_backward = (self.hidden + 1) // 2, self.hidden // 2
        self.forward = LSTMLayer(n_forward, scale=self.scale)
        self.backward = LSTMLayer(n_backward, backward=True, scale=self.scale)
        self.encoder = [LSTMLayer(self.hidden, scale=self.scale) for _ in range(self.n_layers - 1)]
        self.attention = Attention(self.hidden, scale=self.scale)
        self.decoder = [LSTMCell(self.hidden, scale=self.scale) for _ in range(self.n_layers)]
        self.softmax = nn.Dense(
            self.vocabularies[1], use_bias=False, kernel_init=init_weights(self.scale)
        )
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, source: jax.Array, target: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits of the next target token at each position, with teacher forcing.

        Args:
          source: int[n, from] tokens.
          target: int[n, to] tokens.
          train: whether to drop out; needs a `dropout` key.
        """
        memory = self.encode(source, train=train)
        x = self.drop(self.target(target), deterministic=not train)

        def step(self: Translator, carry: Carry, x: jax.Array) -> tuple[Carry, jax.Array]:
            return self.decode(carry, x, memory)

        scan = nn.scan(step, **_SHARED, in_axes=1, out_axes=1)
        _, out = scan(self, self.start(source.shape[0], memory.values.dtype), x)
        return self.softmax(out)

    def encode(self, source: jax.Array, *, train: bool = False) -> Memory:
        """Encodes the source tokens."""
        where = source != 0
        x = self.drop(self.source(source), deterministic=not train)
        both_ways = [layer(x, where=where)[0] for layer in (self.forward, self.backward)]
        x = jnp.concatenate(both_ways, -1)
        for i, layer in enumerate(self.encoder):
            y, _ = layer(self.drop(x, deterministic=not train), where=where)
            x = y + (x if i > 0 else 0)
        return Memory(x, self.attention.keys(x), where)

    def decode(self, carry: Carry, x: jax.Array, memory: Memory) -> tuple[Carry, jax.Array]:
        """Takes one step: the next carry, and the output of the top layer.

        Every layer also reads the result of the attention: the lowest layer that of the previous
        step, the others that of this step.
        """
        states, attended = carry
        after = []
        for i, layer in enumerate(self.decoder):
            after.append(layer(jnp.concatenate([x, attended], -1), states[i]))
            if i == 0:
                attended = self.attention(after[0][0], memory)
            x = after[i][0] + (x if i > 1 else 0)
        return (after, attended), x

    def start(self, n: int, dtype: Any) -> Carry:
        """The carry of the decoder before its first step."""
        states = [zero_state(n, self.hidden, dtype) for _ in range(self.n_layers)]
        return states, jnp.zeros((n, self.hidden), dtype)

    def greedy(self, source: jax.Array, n_steps: int, begin: int) -> jax.Array:
        """Decodes greedily to int[n, n_steps] tokens; it does not stop at the end token."""
        memory = self.encode(source)

        def step(self: Translator, carry: Any, _: None) -> tuple[Any, jax.Array]:
            states, token = carry
            states, out = self.decode(states, self.target(token), memory)
            token = self.softmax(out).argmax(-1).astype(jnp.int32)
            return (states, token), token

        n = source.shape[0]
        scan = nn.scan(step, **_SHARED, out_axes=1, length=n_steps)
        start = self.start(n, memory.values.dtype), jnp.full((n,), begin, jnp.int32)
        _, out = scan(self, start, None)
        return out
