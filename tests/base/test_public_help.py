"""What `help()` and notebooks show of public names."""

import ast
import copy
import dataclasses
import doctest
import inspect
import pathlib
import pickle
import pydoc
import textwrap
import typing

import numpy as np
import pytest

import jaxprune
import jaxprune.plots
from jaxprune._base.public_help import with_readable_help

NAMES = {name: getattr(jaxprune, name) for name in jaxprune.__all__}
NAMES |= {name: getattr(jaxprune.plots, name) for name in jaxprune.plots.__all__}
# The file of each name.
PAGES = {name: f"{jaxprune._MODULE_OF.get(name, 'plots').split('.')[-1]}.py" for name in NAMES}
PAGES = {name: pathlib.Path(file) for name, file in PAGES.items()}
PUBLIC = list(NAMES.values())
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # those in pyproject.toml
FUNCTIONS = [value for value in PUBLIC if inspect.isfunction(value)]
CLASSES = [value for value in PUBLIC if inspect.isclass(value)]
VALUES = [name for name in jaxprune.__all__ if hasattr(getattr(jaxprune, name), "assign")]
VALUES += ["movement"]


def named(value):
    return value.__name__


def arguments_of(definition):
    """Name, kind and annotation of each argument, in order."""
    arguments = definition.args
    star = "vararg" if arguments.vararg else "star" if arguments.kwonlyargs else None
    return [
        *[("first", a.arg, a.annotation and ast.unparse(a.annotation)) for a in arguments.args],
        (star, arguments.vararg and arguments.vararg.arg),
        *[("key", a.arg, a.annotation and ast.unparse(a.annotation)) for a in arguments.kwonlyargs],
        arguments.kwarg and arguments.kwarg.arg,
        definition.returns and ast.unparse(definition.returns),
    ]


@pytest.mark.parametrize("function", FUNCTIONS, ids=named)
def test_the_signature_is_that_of_the_source(function):
    [source] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    [printed] = ast.parse(f"def f{inspect.signature(function)}: ...").body
    assert arguments_of(printed) == arguments_of(source)


@pytest.mark.parametrize("value", FUNCTIONS + CLASSES, ids=named)
def test_signatures_in_help_fit_80_columns(value):
    text = pydoc.plain(pydoc.render_doc(value))
    # Up to Python 3.12 `help` prints the text of a signature; later, its format in a given width.
    signature = inspect.signature(value)
    forms = (str(signature), signature.format(max_width=80 - len(value.__name__)))
    forms = [f"{value.__name__}{form}".splitlines() for form in forms]
    assert any(all(line in text for line in lines) for lines in forms)
    indent = 4 * inspect.isclass(value)
    assert all(indent + len(line) <= 80 for lines in forms for line in lines)
    for noise in (" at 0x", "ForwardRef", "[collections.abc", "jax.jaxlib", ": '", "-> '"):
        assert noise not in text.split("Example:")[0], noise


@pytest.mark.parametrize("value", FUNCTIONS + CLASSES, ids=named)
def test_type_hints_can_be_evaluated(value):
    parts = [value]
    if inspect.isclass(value):
        attributes = vars(value).values()
        parts += [getattr(x, "fget", None) or getattr(x, "__func__", x) for x in attributes]
        if dataclasses.is_dataclass(value):
            types = {field.name: field.type for field in dataclasses.fields(value)}
            assert types.items() <= typing.get_type_hints(value).items()
    for part in parts:
        if part is value or inspect.isfunction(part):
            typing.get_type_hints(part)  # raises a NameError for a name that it can't find


def docstrings_of(value):
    """The docstring of a public value, and those of the public methods of a class, by name."""
    attributes = vars(value) if inspect.isclass(value) else {}
    methods = {
        name: getattr(x, "fget", None) or getattr(x, "__func__", x)
        for name, x in attributes.items()
        if not name.startswith("_")
    }
    texts = {name: getattr(method, "__doc__", None) for name, method in methods.items()}
    return {"": value.__doc__} | {name: text for name, text in texts.items() if text}


@pytest.mark.parametrize("name, page", PAGES.items(), ids=PAGES)  # conftest.py knows the pages
def test_examples_need_nothing_but_jaxprune_and_the_name_that_they_explain(name, page):
    del page
    for method, text in docstrings_of(NAMES[name]).items():
        names = {name: NAMES[name], "jaxprune": jaxprune}
        test = doctest.DocTestParser().get_doctest(text, names, f"{name}.{method}", name, 0)
        doctest.DebugRunner(verbose=False, optionflags=FLAGS).run(test)


def test_functions_explain_their_arguments():
    assert [function.__name__ for function in FUNCTIONS if "Args:\n" not in function.__doc__] == []


PARAMS = {"w": np.ones((2, 2))}
BAD_CALLS = {
    "save to no folder": lambda: jaxprune.save("no/such/folder", PARAMS),
    "save to a folder": lambda: jaxprune.save("/", PARAMS),
    "save_safetensors to no folder": lambda: jaxprune.save_safetensors("no/such/folder", PARAMS),
    "save_safetensors to a folder": lambda: jaxprune.save_safetensors("/", PARAMS),
    "shrink without a function": lambda: jaxprune.shrink(PARAMS, PARAMS),
    "channel_groups without a function": lambda: jaxprune.channel_groups(PARAMS, PARAMS),
    "shrink_nnx without a model": lambda: jaxprune.shrink_nnx(PARAMS),
    "channel_groups_nnx without a model": lambda: jaxprune.channel_groups_nnx(PARAMS),
    "to_bcoo of words": lambda: jaxprune.to_bcoo({"w": "words"}),
    "to_bcsr of words": lambda: jaxprune.to_bcsr({"w": "words"}),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_errors_are_announced(call):
    with pytest.raises((TypeError, OSError)) as caught:
        BAD_CALLS[call]()
    announced = getattr(jaxprune, call.split()[0]).__doc__.partition("Raises:")[2]
    assert f" {caught.type.__name__}" in announced


def test_kinds_of_arguments_keep_their_separators():
    def function(first, /, second: int = 2, *rest, key="k", **others):
        """A function with arguments of every kind."""

    def all_positional(first, second=named, /):
        """A function whose arguments have no names for the caller."""

    text = str(inspect.signature(with_readable_help(function, __name__, "function")))
    assert text == "(first, /, second: int = 2, *rest, key='k', **others)"
    text = str(inspect.signature(with_readable_help(all_positional, __name__, "all_positional")))
    assert text == "(first, second=named, /)"


def test_defaults_stay_the_objects_that_they_are():
    parameters = inspect.signature(jaxprune.prune).parameters
    assert parameters["score"].default is jaxprune.magnitude
    assert parameters["distribution"].default is jaxprune.uniform
    bound = inspect.signature(jaxprune.prune).bind(None, seed=3)
    bound.apply_defaults()
    assert bound.arguments["score"] is jaxprune.magnitude
    assert (
        str(parameters["score"]) == "score: ScoreFunction | Accumulated = magnitude"
    )  # notebooks print each parameter


@pytest.mark.parametrize("name", VALUES)
def test_values_have_the_docstring_below_their_assignment(name):
    value = getattr(jaxprune, name)
    assert value.__doc__ != type(value).__doc__
    assert value.__doc__ in inspect.getsource(inspect.getmodule(_class_module(value)))
    assert f"\n{name}\n" in pydoc.plain(pydoc.render_doc(value))


@pytest.mark.parametrize("name", [name for name in VALUES if name != "movement"])
def test_examples_of_distributions_run(name):
    test = doctest.DocTestParser().get_doctest(getattr(jaxprune, name).__doc__, {}, name, name, 0)
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def _class_module(value):
    return value.assign if hasattr(value, "assign") else value.increment


@pytest.mark.parametrize("name", VALUES)
def test_values_survive_copies_and_pickles(name):
    value = getattr(jaxprune, name)
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("name", ("torch_roles", "equinox_roles"))
def test_ready_made_roles_are_explained_and_join_other_rules(name):
    roles, own = getattr(jaxprune, name), {"up": ("in", "out")}
    assert "The roles of" in pydoc.plain(pydoc.render_doc(roles))
    assert pickle.loads(pickle.dumps(roles)) == roles == dict(roles)
    assert list(own | roles) == [*own, *roles] == list({**own, **roles})
    assert list(roles | own) == [*roles, *own]
    with pytest.raises(TypeError):
        roles["up"] = own["up"]


def test_a_public_name_is_always_the_same_object_and_lives_where_it_is_defined():
    assert jaxprune.Block is jaxprune.Block
    assert not {"Block", "prune"} & vars(jaxprune).keys()  # doctest would run them a second time


def test_a_misspelled_name_is_corrected():
    with pytest.raises(AttributeError) as caught:
        jaxprune.prunes  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("prunes", jaxprune)  # Python suggests `prune`
