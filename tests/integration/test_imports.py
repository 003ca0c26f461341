"""Which package imports which, what `import jaxprune` loads, and which names it exports."""

import ast
import doctest
import functools
import graphlib
import inspect
import pathlib
import pickle
import re
import subprocess
import sys

import pytest

import jaxprune

FOLDER = pathlib.Path(jaxprune.__file__).parent
# Each package and those it may import; these are in rows above it, so that there are no cycles.
MAY_IMPORT = {
    "_base": (),
    "_topk": ("_base",),
    "_recipe": ("_base",),
    "_state": ("_base",),
    "_transform": ("_base", "_topk", "_recipe", "_state"),
    "_report": ("_base", "_recipe", "_state", "_transform"),
    "_trace": ("_base", "_recipe"),
    "_files": ("_base", "_state"),
    "_calibration": ("_base", "_topk", "_recipe", "_state", "_trace", "_files"),
    "_shrink": ("_base", "_recipe", "_state", "_trace"),
    "_blocks": ("_base", "_recipe", "_files"),
    "_cli": ("_base", "_recipe", "_state", "_transform", "_report", "_files"),
    "plots": ("_base", "_recipe", "_files", "_report"),
    "__init__": ("_base", "_topk", "_recipe", "_state", "_transform", "_report", "_trace")
    + ("_calibration", "_shrink", "_files", "_blocks", "plots"),
    "demo": ("__init__", "_files"),
    "__main__": ("__init__", "_cli", "demo"),
}
PROGRAMS = ("__main__", "demo", "_cli")  # may import extras at the top
KNOW_OPTAX = ("_report.plan", "_state.splice", "_state.upgrade") + tuple(
    f"_transform.{name}" for name in ("inner", "keep_zeros", "prune", "rigl", "update")
)
# Of these, only `__init__` imports modules of jaxprune; the others import extras.
IMPORT_BY_STRING = ("__init__", "_base.flax_import", "_files.extras")
RUN_TIME = {"jax", "numpy", "chex", "optax"}
PUBLIC = jaxprune.__all__
# Path of every module, by its name, such as `_base.paths`.
MODULES = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in sorted(FOLDER.rglob("*.py"))
}


def package_of(module):
    return module.partition(".")[0]


@functools.cache
def tree_of(module):
    return ast.parse(MODULES[module].read_text())


def names_in(nodes):
    """The modules that some import statements name, in full."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:  # a module of a package, or a name in a module
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("jaxprune.") in MODULES
                yield whole if is_module or node.module == "jaxprune" else node.module


def nodes_at_import(node):
    """What runs when a module is imported: all but functions and what only type checkers see."""
    for child in ast.iter_child_nodes(node):
        is_lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not is_lazy and not (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        ):
            yield child
            yield from nodes_at_import(child)


def ours_in(module):
    """The modules of jaxprune that a module imports, inside functions too."""
    for name in names_in(ast.walk(tree_of(module))):
        parts = name.split(".")
        if parts[0] != "jaxprune":
            continue
        inner = ".".join(parts[1:])
        if inner in MODULES:
            yield inner
        elif f"{inner}.__init__" in MODULES:
            yield f"{inner}.__init__"
        else:  # `import jaxprune`, or a public name of it
            assert not inner or inner in (*PUBLIC, "__version__"), name
            yield "__init__"


def test_every_package_has_its_row_in_the_table():
    assert {package_of(module) for module in MODULES} == set(MAY_IMPORT)


def test_the_table_has_no_cycle():
    rows = list(MAY_IMPORT)
    for package, allowed in MAY_IMPORT.items():
        assert all(rows.index(name) < rows.index(package) for name in allowed), package


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_the_table_allows(package):
    for module in MODULES:
        if package_of(module) == package:
            imported = {package_of(name) for name in ours_in(module)} - {package}
            assert imported <= set(MAY_IMPORT[package]), module


def test_modules_import_each_other_without_cycles():
    imported = {module: set(ours_in(module)) for module in MODULES}
    graphlib.TopologicalSorter(imported).prepare()


def test_every_module_is_in_use():
    used, to_do = set(), ["__init__", "__main__", "plots"]
    while to_do:
        module = to_do.pop()
        if module not in used:
            used.add(module)
            to_do += ours_in(module)
    assert set(MODULES) - used == {name for name in MODULES if name.endswith(".__init__")}


def test_packages_hold_nothing_but_a_docstring():
    for module in MODULES:
        if module.endswith(".__init__"):  # importing any module of the package runs it
            assert len(tree_of(module).body) == 1, module
            assert ast.get_docstring(tree_of(module)), module


def test_only_these_modules_import_dynamically():
    by_string = {
        module
        for module, path in MODULES.items()
        if re.search(r"\bimport_module\(|\b__import__\(|\bexec\(", path.read_text())
    }
    assert by_string == set(IMPORT_BY_STRING)


def test_only_these_modules_import_optax():
    know = {
        module
        for module in MODULES
        if package_of(module) not in PROGRAMS
        and any(package_of(name) == "optax" for name in names_in(ast.walk(tree_of(module))))
    }
    assert know == set(KNOW_OPTAX)


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name not in PROGRAMS])
def test_extras_are_imported_only_inside_functions(package):
    for module in MODULES:
        if package_of(module) == package:
            at_import = {package_of(name) for name in names_in(nodes_at_import(tree_of(module)))}
            extras = at_import - set(sys.stdlib_module_names) - RUN_TIME - {"jaxprune"}
            assert not extras, module


def python(program):
    """Runs a program in a fresh Python; the words of each line that it prints."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [line.split() for line in run.stdout.splitlines()]


def test_importing_jaxprune_loads_nothing_but_the_standard_library():
    [loaded] = python(
        "import sys; before = set(sys.modules); import jaxprune; dir(jaxprune); "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(loaded) - set(sys.stdlib_module_names) == {"jaxprune"}


def test_using_everything_public_loads_no_extra():
    [loaded] = python(
        "import sys, jaxprune; [getattr(jaxprune, name) for name in jaxprune.__all__]; "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    extras = {"flax", "rich", "matplotlib", "typer", "tqdm", "sklearn", "orbax", "scipy"}
    assert {"jax", "optax"} <= set(loaded)
    assert not extras & set(loaded)


def test_the_version_is_printed_without_jax():
    [version, [is_loaded]] = python(
        "import sys; sys.argv = ['jaxprune', '--version']\n"
        "from jaxprune.__main__ import app\n"
        "try: app()\n"
        "except SystemExit: print('jax' in sys.modules)"
    )
    assert version == ["jaxprune", jaxprune.__version__]
    assert is_loaded == "False"


def test_type_checkers_see_the_names_that_are_loaded_lazily():
    [guarded] = [
        node
        for node in tree_of("__init__").body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {alias.asname: node.module for node in guarded.body for alias in node.names}
    assert all(alias.name == alias.asname for node in guarded.body for alias in node.names)
    loaded = {name: f"jaxprune.{module}" for name, module in jaxprune._MODULE_OF.items()}
    assert seen == loaded | {"plots": "jaxprune"}
    assert sorted(PUBLIC) == sorted(loaded)


def test_type_checkers_do_not_see_a_function_that_has_every_name():
    defined = [node.name for node in tree_of("__init__").body if hasattr(node, "name")]
    assert "__getattr__" not in defined
    assert callable(jaxprune.__getattr__)


def test_public_names_are_loaded_from_the_modules_that_define_them():
    for name, module in jaxprune._MODULE_OF.items():
        defined = set()
        for node in tree_of(module).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined |= set(map(ast.unparse, node.targets))
        assert name in defined, f"{name} is not defined in {module}"


def test_only_public_names_show():
    assert dir(jaxprune) == sorted([*PUBLIC, "__version__", "plots"])
    with pytest.raises(AttributeError, match="no attribute 'pruned'"):
        jaxprune.pruned  # noqa: B018


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_classes_are_pickled_by_their_public_name(name):
    thing = getattr(jaxprune, name)
    if inspect.isclass(thing):
        assert thing.__module__ == "jaxprune"
        assert pickle.loads(pickle.dumps(thing)) is thing


def test_named_tuples_assign_nothing_in_their_bodies():
    """Mypy counts `__module__ = ...` as a field, and then refuses `count, gram = moments(x)`."""
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases):
                assert not [line for line in node.body if isinstance(line, ast.Assign)], node.name


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_public_has_a_docstring_with_an_example_that_runs(name):
    thing = getattr(jaxprune, name)
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        source = tree_of(jaxprune._MODULE_OF[name])
        after = [
            following
            for node, following in zip(source.body, source.body[1:], strict=False)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
        ]
        assert isinstance(after[0].value.value, str), "a string below the value says what it is"
        return
    text = inspect.getdoc(thing)
    assert text.split("\n\n")[0].endswith("."), "a sentence comes first"
    example = text.partition("Example:")[2]
    assert doctest.DocTestParser().get_examples(example), "pytest runs it"


FUNCTIONS = sorted(name for name in PUBLIC if inspect.isfunction(getattr(jaxprune, name, None)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_explain_all_arguments_or_none(name):
    text = inspect.getdoc(getattr(jaxprune, name))
    arguments = inspect.signature(getattr(jaxprune, name)).parameters
    explained = [argument for argument in arguments if f"\n  {argument}: " in text]
    assert explained == (list(arguments) if "\nArgs:\n" in text else [])


NEED_FLAX = {name for name in FUNCTIONS if re.search("nnx|linen", name)}
NEED_FLAX |= {"pack_linear", "packed_apply"}


@pytest.mark.parametrize("name", sorted(NEED_FLAX))
def test_without_flax_the_extra_is_named(monkeypatch, name):
    for module in ("flax", "flax.linen", "flax.nnx"):
        monkeypatch.setitem(sys.modules, module, None)
    function = getattr(jaxprune, name)
    required = [
        x
        for x in inspect.signature(function).parameters.values()
        if x.kind is x.POSITIONAL_OR_KEYWORD and x.default is x.empty
    ]
    with pytest.raises(ModuleNotFoundError) as raised:
        function(*[None] * len(required))
    expected = f"{name} needs flax, which is not installed: pip install 'jaxprune[flax]'."
    assert str(raised.value) == expected
