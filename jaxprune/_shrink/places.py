"""Where an equation of a program comes from: the primitive, the module and the line of the source.

Reasons in reports end with a place, so that users find the line that keeps an axis from shrinking.
JAX records the call stack of every equation; the first frame outside of installed packages is the
line of the model, and the name stack has the names of linen modules.
"""

import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune._trace.records import EquationPath

_JAX = (str(Path(jax.__file__).parent), str(Path(__file__).parent))
_PACKAGES = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})


class Line(NamedTuple):
    """A line of a source file."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.number}"


def equation_at(jaxpr: Any, path: EquationPath) -> Any:
    """The equation at a path of `Tracer.equations`."""
    return _equations_to(jaxpr, path)[-1]


def place_at(jaxpr: Any, path: EquationPath) -> str:
    """An equation for users: `div in Encoder/attention, model.py:33`.

    The equations of functions that JAX compiles, such as `jnp.var`, have no line, since every
    caller gets the same ones: then the line, and the module, are those of the call.
    """
    inner_first = list(reversed(_equations_to(jaxpr, path)))
    name = inner_first[0].primitive.name
    modules = (str(eqn.source_info.name_stack) for eqn in inner_first)
    module = next(filter(None, modules), "")
    line = next(filter(None, (model_line(lines_of(eqn)) for eqn in inner_first)), None)
    place = f"{name} in {module}" if module else name
    return f"{place}, {line}" if line else place


def _equations_to(jaxpr: Any, path: EquationPath) -> list[Any]:
    """The equation at a path, after those whose inner programs it is in, the outer ones first."""
    first, *rest = path
    eqns = [jaxpr.eqns[int(first)]]
    for key, number, index in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        inner = eqns[-1].params[str(key)]
        inner = inner[int(number)] if isinstance(inner, tuple) else inner
        eqns.append(getattr(inner, "jaxpr", inner).eqns[int(index)])
    return eqns


def lines_of(eqn: Any) -> list[Line]:
    """The lines that called an equation, innermost first, without those of JAX and jaxprune."""
    traceback = eqn.source_info.traceback
    return _outside_jax(
        Line(frame.file_name, getattr(frame, "start_line", 0) or frame.line_num)
        for frame in (traceback.frames if traceback else ())
    )


def lines_of_error(error: BaseException) -> list[Line]:
    """The lines of a Python traceback, innermost first, without those of JAX and jaxprune."""
    lines, traceback = [], error.__traceback__
    while traceback is not None:
        lines.append(Line(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno))
        traceback = traceback.tb_next
    return _outside_jax(reversed(lines))


def model_line(lines: Iterable[Line]) -> Line | None:
    """The innermost line outside of installed packages; the innermost of all if there is none."""
    lines = list(lines)
    own = [line for line in lines if not line.file.startswith(_PACKAGES) and line.file[:1] != "<"]
    return next(iter(own or lines), None)


def _outside_jax(lines: Iterable[Line]) -> list[Line]:
    return [line for line in lines if not line.file.startswith(_JAX)]
