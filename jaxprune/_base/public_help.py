"""What `help()` and tools see of a public name: signatures, docstrings of values, and type hints.

Python prints a signature in one line, with annotations in quotes and a function that is a default
as `<function magnitude at 0x7f3519d39580>`. Here it gets one line for each argument, written as in
the source. Only the display changes: parameters and their defaults stay the objects that they are,
so `Signature.bind`, which `optax.inject_hyperparams` uses, works as before.

The annotations of a public class are evaluated. They are strings, and `typing.get_type_hints` would
look for the names in them in `jaxprune`, by the `__module__` of the class.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterator
from typing import Any, ForwardRef

WIDTH = 80
INDENT = 4  # of the methods of a class in `help()`
ONE_LINE = 64  # with the indent; leaves room for the name


class ReadableParameter(inspect.Parameter):
    """A parameter that prints as in the source: annotations without quotes, functions by name."""

    def __str__(self) -> str:
        stars = {self.VAR_POSITIONAL: "*", self.VAR_KEYWORD: "**"}.get(self.kind, "")
        text = stars + self.name
        is_annotated = self.annotation is not self.empty
        if is_annotated:
            text += f": {_annotation_text(self.annotation)}"
        if self.default is self.empty:
            return text
        default = self.default.__name__ if inspect.isfunction(self.default) else repr(self.default)
        return f"{text} = {default}" if is_annotated else f"{text}={default}"


class ReadableSignature(inspect.Signature):
    """A signature that prints with one argument per line, unless it is short."""

    def __str__(self) -> str:
        return self.format(max_width=ONE_LINE)

    def format(self, *, max_width: int | None = None, **_: Any) -> str:
        """The text of the signature, as `inspect.Signature.format` of Python 3.13 returns it.

        Args:
          max_width: a longer text gets one line for each argument; None for one line in any case.
            The indent of methods in the help of a class is kept free.
        """
        returned = self.return_annotation
        arrow = "" if returned is self.empty else f" -> {_annotation_text(returned)}"
        arguments = list(self._arguments())
        line = f"({', '.join(arguments)}){arrow}"
        if max_width is None or len(line) <= max_width - INDENT:
            return line
        return "(\n" + "".join(f"{_indented(text)},\n" for text in arguments) + f"){arrow}"

    def _arguments(self) -> Iterator[str]:
        kinds = [parameter.kind for parameter in self.parameters.values()]
        last_positional = kinds.count(inspect.Parameter.POSITIONAL_ONLY)
        has_star = inspect.Parameter.VAR_POSITIONAL in kinds
        for i, parameter in enumerate(self.parameters.values()):
            if i and i == last_positional:
                yield "/"
            if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
                yield "*"
                has_star = True
            yield str(parameter)
        if kinds and last_positional == len(kinds):
            yield "/"


def _annotation_text(annotation: Any) -> str:
    if isinstance(annotation, ForwardRef):  # the fields of a NamedTuple
        return annotation.__forward_arg__
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _indented(text: str) -> str:
    """One argument, at the spaces of a long annotation over several lines."""
    lines = textwrap.wrap(
        text,
        WIDTH - INDENT,
        initial_indent="    ",
        subsequent_indent="        ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines)


def with_readable_help(value: Any, module: str, name: str) -> Any:
    """A public value, after its display in `help()` was improved, and its annotations evaluated.

    Args:
      value: a function, a class, or an instance of one, such as `erk`.
      module: the full name of the module that defines it.
      name: its name there.

    Returns:
      The same object.
    """
    if inspect.isfunction(value):
        _set_signature(value)
    elif inspect.isclass(value):
        for method in vars(value).values():
            function = getattr(method, "__func__", method)  # `__new__` is a static method
            if inspect.isfunction(function):
                _set_signature(function)
        _evaluate_annotations(value, module)
    elif hasattr(value, "__dict__"):
        _set_docstring(value, module, name)
    return value


def _set_signature(function: Any) -> None:
    signature = inspect.signature(function)
    parameters = [
        ReadableParameter(p.name, p.kind, default=p.default, annotation=p.annotation)
        for p in signature.parameters.values()
    ]
    function.__signature__ = ReadableSignature(
        parameters, return_annotation=signature.return_annotation
    )


def _evaluate_annotations(cls: Any, module: str) -> None:
    """Replaces the annotations of a class, which are strings, by what they say in its module."""
    own = inspect.get_annotations(cls)
    hints = typing.get_type_hints(cls, vars(sys.modules[module]))
    hints = {name: hints[name] for name in own}
    if hints:
        cls.__annotations__ = hints
    if hasattr(cls, "_fields"):  # a NamedTuple, whose arguments are those of `__new__`
        cls.__new__.__annotations__ = hints
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            field.type = hints[field.name]


def _set_docstring(value: Any, module: str, name: str) -> None:
    """Sets the string that follows the assignment in the source as docstring, if there is one."""
    try:
        body = ast.parse(inspect.getsource(sys.modules[module])).body
    except OSError:  # installed without sources
        return
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = inspect.cleandoc(str(following.value.value))
                object.__setattr__(value, "__doc__", text)  # the class may be frozen
            return
