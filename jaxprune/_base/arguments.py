"""Checks of arguments that users pass, and the errors that these checks raise.

An error names the argument, shows the value, and suggests what to type instead. `BadValue` and
`BadType` keep the suggestion as data, so that the command line can show it as options.
"""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LAST_STEP = 2**31 - 2  # steps are counted in int32
_MOST_FIRES = 100_000  # the schedule tabulates one exact target, and one budget per leaf, for each


class BadArgument(Exception):
    """An error whose suggestion names arguments: the base of `BadValue` and `BadType`.

    The text is the problem, then the suggestion. Each `{argument}` in the suggestion is replaced by
    that argument and its value, as Python code in `str(error)`, and in any other notation by
    `told`. All attributes survive copying and pickling.

    Args:
      problem: what is wrong, with the path or the argument, the value, and what is needed.
      suggestion: what to type instead, a template for `str.format`.
      arguments: the value of each argument that the suggestion names. `...` stands for a value that
        the user has to choose.

    Example:
      >>> fix = "Leave it out with {exclude}, or use {overrides}."
      >>> error = BadValue("fc: too small.", fix, exclude="fc", overrides={"fc": 0.5})
      >>> print(error)
      fc: too small. Leave it out with exclude='fc', or use overrides={'fc': 0.5}.
      >>> print(error.told(lambda argument, value: f"--{argument} {value}"))
      fc: too small. Leave it out with --exclude fc, or use --overrides {'fc': 0.5}.
    """

    def __init__(self, problem: str, suggestion: str = "", **arguments: Any):
        self.problem, self.suggestion, self.arguments = problem, suggestion, arguments
        super().__init__(self.told(as_python))

    def told(self, format_argument: Callable[[str, Any], str]) -> str:
        """The text of the error, with each argument as `format_argument(name, value)` writes it."""
        if not self.suggestion:
            return self.problem
        texts = {name: format_argument(name, value) for name, value in self.arguments.items()}
        return f"{self.problem} {self.suggestion.format(**texts)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (isinstance(self, ValueError), str(self)), vars(self)


class BadValue(BadArgument, ValueError):
    """A `ValueError` whose suggestion names arguments; see `BadArgument`."""


class BadType(BadArgument, TypeError):
    """A `TypeError` whose suggestion names arguments; see `BadArgument`."""


# A traceback shows users the names of the errors that they can catch.
for _kind, _base in ((BadValue, ValueError), (BadType, TypeError)):
    _kind.__module__ = _base.__module__
    _kind.__name__ = _kind.__qualname__ = _base.__name__


def _again(is_value: bool, text: str) -> BadArgument:
    """The copy of an error; pickle can't find its class by the name that it shows."""
    return (BadValue if is_value else BadType)(text)


def as_python(argument: str, value: Any) -> str:
    """An argument and its value as Python code.

    Example:
      >>> as_python("exclude", "fc/bias"), as_python("overrides", {"w": Fraction(1, 2)})
      ("exclude='fc/bias'", "overrides={'w': 0.5}")
    """
    if argument == "final_sparsity":  # the functions that take one give it different names
        return f"a final sparsity of {_literal(value)}"
    if argument == "per_slice":  # a function
        return f"per_slice({_literal(value)})"
    return f"{argument}={_literal(value)}"


def _literal(value: Any) -> str:
    if value is ...:
        return "..."
    if isinstance(value, (float, Fraction)):
        return f"{float(value):g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_literal(item)}" for key, item in value.items()) + "}"
    return repr(value)


def shown(value: Any) -> str:
    """A value for an error: its `repr` if that is short, else its type.

    The `repr` of an array or of a tree can fill a screen, and that of a function has its address.

    Example:
      >>> shown(0.5), shown(np.zeros((3, 40))), shown(shown), shown(dict)
      ('0.5', 'an array (float64 of shape (3, 40))', 'the function shown', 'the class dict')
    """
    if isinstance(value, Tracer):
        return "a traced value"
    if inspect.isclass(value) or inspect.isroutine(value):
        kind = "class" if inspect.isclass(value) else "function"
        name = getattr(value, "__name__", "<lambda>")
        return f"a {kind}" if name == "<lambda>" else f"the {kind} {name}"
    text = repr(value)
    if len(text) <= 80 and "\n" not in text and "Tracer" not in text:
        return text
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and isinstance(shape, tuple):
        return f"an array ({dtype} of shape {tuple(shape)})"
    return kind_of(value)


def kind_of(value: Any) -> str:
    """The type of a value, for an error about a tree, whose `repr` says too much.

    Example:
      >>> kind_of({"w": 1.0})
      'a value of type dict'
    """
    if isinstance(value, Tracer):
        return "a traced value"
    return f"a value of type {type(value).__name__}"


# Flags, files, arrays


def as_flag(name: str, value: Any) -> bool:
    """A bool of Python or NumPy as a Python bool: 0, None and "no" are likely mistakes.

    Raises:
      TypeError: anything else.

    Example:
      >>> as_flag("packed", np.True_)
      True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def as_file_path(
    function: str,
    value: Any,
    argument: str = "path",
    example: str = "model.safetensors.zst",
) -> Path:
    """The name of a file or folder as a `Path`.

    Raises:
      TypeError: neither a string nor a path.

    Example:
      >>> as_file_path("save", "model.zst").name
      'model.zst'
    """
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(
            f"{function}: {argument} must be a string or a pathlib.Path, got {shown(value)}. Pass "
            f"it first, such as {example!r}."
        )
    return Path(value)


def as_array(where: str, value: Any, fix: str) -> jax.Array:
    """A value of any kind that JAX can hold, as a JAX array.

    Args:
      where: the argument, for errors.
      value: an array, a number, or lists of numbers.
      fix: what to pass instead, a sentence.

    Raises:
      TypeError: JAX can't make an array of numbers of it.

    Example:
      >>> as_array("moments: inputs", [1.0, 2.0], "Pass a batch.").shape
      (2,)
    """
    try:
        if value is None or isinstance(value, (str, bytes, Mapping)):
            raise TypeError
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise TypeError(f"{where} must be an array, got {shown(value)}. {fix}") from None


# Sparsities


def as_sparsity(value: Any, name: str, of: str = "zeros") -> Fraction:
    """A sparsity as an exact fraction: 0.9 becomes nine tenths, not the value of its binary float.

    Args:
      value: what the user passed.
      name: of the argument, for errors.
      of: what it is a fraction of, for errors.

    Raises:
      TypeError: not a real number.
      ValueError: outside [0, 1).
    """
    if isinstance(value, np.generic) and jnp.issubdtype(value.dtype, jnp.floating):
        # bfloat16 scalars are not registered as `numbers.Real`.
        value = value if isinstance(value, numbers.Real) else float(value)
    if not _is_real(value):
        hint = " Pass a Python float, such as 0.9."
        if isinstance(value, jax.Array):
            hint = (
                " Sparsity is decided on the host, before tracing: pass a Python float; under "
                "optax.inject_hyperparams, name the argument in static_args."
            )
        raise TypeError(f"{name} must be a real number in [0, 1), got {shown(value)}.{hint}")
    number: Any = value
    if not 0 <= number < 1:
        fix = f"Pass 0.9 for 90% {of}."
        if 2 <= number < 100:
            fix = f"Did you mean {float(number) / 100:g}?"
        elif number == 1 and of == "zeros":
            fix = "Sparsity 1 would leave no weight: pass less, such as 0.99."
        raise ValueError(f"{name} is a fraction of {of} in [0, 1), got {number}. {fix}")
    return number if isinstance(number, Fraction) else Fraction(str(number))


def as_part(name: str, value: Any) -> float:
    """A number in [0, 1] as a float."""
    if not _is_real(value):
        raise TypeError(
            f"{name} must be a real number in [0, 1], got {shown(value)}. Pass a Python float."
        )
    part = float(value)
    if not 0 <= part <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}. Pass a fraction, such as 0.3.")
    return part


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_list(value: Any) -> bool:
    """Whether a value is a tuple, a list, or a list of a configuration; no string.

    Example:
      >>> is_list([1, 2]), is_list((1, 2)), is_list("12"), is_list(b"12"), is_list({1, 2})
      (True, True, False, False, False)
    """
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def dict_hint(value: Any) -> str:
    """What to add to an error about a value that must be a mapping, if a dict can be made of it.

    The dictionaries of some libraries for configurations are no mappings.
    """
    return f" Pass dict(...) of this {type(value).__name__}." if hasattr(value, "items") else ""


# Integers


def is_int(value: Any) -> bool:
    """Whether a value is an integer on the host, of Python or NumPy, and not a bool.

    Example:
      >>> is_int(3), is_int(np.int64(3)), is_int(True), is_int(3.0)
      (True, True, False, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def as_int(name: str, value: Any, least: int | None = None) -> int:
    """An integer as a Python int: those of NumPy overflow, and their powers are not exact.

    Args:
      name: of the argument, for errors.
      value: an integer of any kind but bool.
      least: the smallest allowed value, or None for no limit.

    Raises:
      TypeError: not an integer; for an array, the error says to pass a Python int.
      ValueError: less than `least`.

    Example:
      >>> as_int("every", np.int32(100), least=1)
      100
    """
    if not is_int(value):
        fix = ""
        if isinstance(value, (jax.Array, np.ndarray)):
            fix = " It is decided on the host, before tracing: pass a Python int."
        elif isinstance(value, float) and math.isfinite(value) and (round(value) or value == 0):
            fix = f" Did you mean {round(value)}?"
        raise TypeError(f"{name} must be an int, got {shown(value)}.{fix}")
    number = int(value)
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}.")
    return number


def as_seed(name: str, value: Any) -> int:
    """A seed in [0, 2**32): of a larger one, JAX without 64-bit mode would drop the upper bits.

    Raises:
      TypeError: not an integer, such as a PRNG key.
      ValueError: out of range.
    """
    if isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(
            f"{name} must be an int, got {shown(value)}. Pass a Python int, such as {name}=0; keys "
            "are made from it."
        )
    seed = as_int(name, value)
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must be in [0, 2**32), got {seed}. Pass {name}={seed % 2**32}.")
    return seed


def check_key(name: str, key: Any) -> None:
    """Raises a TypeError unless this is one PRNG key, of either kind that JAX has."""
    if isinstance(key, (jax.Array, np.ndarray)):
        is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
        if is_typed or (key.dtype == jnp.uint32 and key.ndim == 1):
            return
    seed = key if is_int(key) else 0
    raise TypeError(f"{name} must be a PRNG key, got {shown(key)}. Pass jax.random.key({seed}).")


# Steps


def check_step(name: str, value: Any) -> int:
    """A step as a Python int in [0, 2**31 - 2]."""
    if isinstance(value, float) and 0 < value < 1:
        raise TypeError(
            f"{name} must be a number of updates, an int, got {value}. For a fraction of the run, "
            f"multiply by its number of updates: {name}=int({value} * n_updates)."
        )
    step = as_int(name, value, least=0)
    if step > _LAST_STEP:
        raise ValueError(f"{name} must be at most {_LAST_STEP}, got {step}.")
    return step


def check_steps(begin_step: Any, end_step: Any, every: Any) -> tuple[int, int, int]:
    """The three arguments that place the fires of a schedule, as Python ints."""
    begin_step = check_step("begin_step", begin_step)
    end_step = check_step("end_step", end_step)
    every = as_int("every", every)
    if end_step < begin_step:
        raise ValueError(
            f"end_step must be at least begin_step, got begin_step={begin_step} and "
            f"end_step={end_step}. Did you swap them?"
        )
    every = as_int("every", every, least=1)
    n_fires = -(-(end_step - begin_step) // every) + 1
    if n_fires > _MOST_FIRES:
        raise ValueError(
            f"every={every} from step {begin_step} to step {end_step} makes {n_fires} fires; at "
            f"most {_MOST_FIRES} are tabulated. Recompute the masks less often: "
            f"every={-(-(end_step - begin_step) // 1000)} makes about 1000 fires."
        )
    return begin_step, end_step, every
