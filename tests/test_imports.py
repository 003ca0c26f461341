"""What imports what, what `import jaxprune` costs, and what it offers."""

import ast
import doctest
import inspect
import pathlib
import subprocess
import sys

import pytest

import jaxprune

FOLDER = pathlib.Path(jaxprune.__file__).parent
# Each module beside those it may import: always modules above it, so that no cycle can form.
MAY_IMPORT = {
    "arguments": (),
    "floats": (),
    "paths": (),
    "agree": (),
    "placement": (),
    "packed": ("placement",),
    "score": (),
    "count": ("placement",),
    "schedule": ("arguments",),
    "structure": ("floats", "placement"),
    "distribution": ("arguments", "paths"),
    "stack": ("floats", "count"),
    "opening": ("floats", "stack"),
    "search": ("floats", "placement", "count", "stack", "opening"),
    "select": ("floats", "placement", "count", "stack", "search"),
    "mask": ("floats", "paths", "placement", "count"),
    "coupled": (),
    "refusals": ("paths", "score", "structure", "distribution"),
    "budget": ("refusals", "coupled", "arguments", "paths", "score", "structure", "distribution"),
    "fire": ("placement", "count", "score", "select", "structure", "coupled", "budget"),
    "state": ("floats", "paths", "packed", "mask"),
    "oneshot": ("arguments", "floats", "paths", "score", "select", "structure", "distribution")
    + ("count", "mask", "budget", "fire"),
    "table": ("paths",),
    "replicas": (),
    "report": ("arguments", "floats", "paths", "schedule", "score", "structure", "distribution")
    + ("agree", "count", "mask", "budget", "state", "table", "replicas"),
    "stream": (),
    "format": ("stream",),
    "saved": ("paths", "stream", "format"),
    "export": ("paths", "state", "format", "saved"),
    "interchange": ("paths", "stream", "format", "export"),
    "footprint": ("stream", "saved"),
    "checkpoint": ("paths", "stream", "format", "saved"),
    "files": ("paths", "stream", "format", "saved", "interchange", "checkpoint"),
    "leaks": ("packed", "saved", "files"),
    "screen": ("stream", "files", "table"),
    "commands": ("oneshot", "table", "report", "saved", "footprint", "files", "leaks", "screen"),
    "cli": ("structure", "files", "commands"),
    "blocks": (),
    "layers": ("paths", "blocks"),
    "axes": (),
    "constants": (),
    "axis_shapes": ("axes",),
    "axis_rules": ("axes", "axis_shapes", "constants"),
    "program": ("axes", "axis_rules", "paths"),
    "groups": ("axes", "program"),
    "resize": (),
    "shrink": ("groups", "program", "resize"),
    "channels": ("axes", "coupled", "groups", "paths", "program", "resize"),
    "deploy": ("paths", "saved", "export", "blocks"),
    "convert": ("paths", "packed", "state"),
    "splice": ("arguments", "paths", "state"),
    "checks": ("arguments", "packed", "paths", "state"),
    "update": ("agree", "arguments", "packed", "paths", "placement", "count", "schedule", "score")
    + ("distribution", "mask", "refusals")
    + ("budget", "fire", "state", "checks"),
    "transform": ("arguments", "schedule", "score", "select", "structure", "distribution")
    + ("budget", "update"),
    "layerwise": ("floats", "mask", "select"),
    "moments": ("layerwise",),
    "activations": ("layerwise",),
    "calibrate": ("arguments", "paths", "distribution", "mask", "budget", "layerwise", "moments"),
    "__init__": ("schedule", "score", "structure", "distribution", "select", "mask", "state")
    + ("oneshot", "report", "transform", "activations", "moments", "calibrate", "export")
    + ("interchange", "blocks", "layers", "agree", "splice", "convert", "shrink", "channels")
    + ("resize", "deploy"),
    "__main__": ("demo", "cli"),
}
RUN_TIME = {"jax", "numpy", "chex", "optax"}
PUBLIC = {
    "Accumulated",
    "Block",
    "Channel",
    "Distribution",
    "Moments",
    "NM",
    "PackedMatrix",
    "PruneState",
    "ShrinkReport",
    "SparsitySchedule",
    "Unstructured",
    "acdc_schedule",
    "apply_masks",
    "channel_groups",
    "channel_groups_nnx",
    "check",
    "check_agreement",
    "cubic_schedule",
    "er",
    "erk",
    "from_optax_schedule",
    "get_masks",
    "get_state",
    "global_pool",
    "gradient_magnitude",
    "linear_schedule",
    "linen_inputs",
    "load",
    "load_packed",
    "magnitude",
    "masks_from_params",
    "metrics",
    "min_density",
    "moments",
    "movement",
    "nnx_inputs",
    "normalized_pool",
    "one_shot_schedule",
    "pack_kernels",
    "pack_linear",
    "pack_masks",
    "pack_matrix",
    "packed_apply",
    "packed_matmul",
    "per_slice",
    "plan",
    "polynomial_schedule",
    "prune",
    "prune_params",
    "random_score",
    "rigl",
    "saliency",
    "save",
    "save_csr",
    "save_safetensors",
    "set_",
    "set_masks",
    "shrink",
    "shrink_nnx",
    "shrunk_apply",
    "sparsegpt",
    "sparsegpt_kernel",
    "splice",
    "static_sparse",
    "straight_through",
    "summarize",
    "to_bcoo",
    "to_bcsr",
    "to_csr",
    "topk_mask",
    "topk_masks",
    "uniform",
    "unpack_masks",
    "unpack_matrix",
    "wanda",
    "wanda_kernel",
}


def tree_of(module):
    return ast.parse((FOLDER / f"{module}.py").read_text())


def names_in(nodes):
    """The modules that some import statements name, in full."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "jaxprune":
                yield from (f"jaxprune.{alias.name}" for alias in node.names)
            else:
                yield node.module


def imported_by(module):
    return list(names_in(ast.walk(tree_of(module))))


def test_every_module_has_its_place_in_the_table():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(MAY_IMPORT)


def test_the_table_has_no_cycle():
    order = list(MAY_IMPORT)
    for module, allowed in MAY_IMPORT.items():
        if module != "__main__":
            assert all(order.index(name) < order.index(module) for name in allowed), module


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_point_one_way(module):
    ours = [name.split(".") for name in imported_by(module) if name.split(".")[0] == "jaxprune"]
    assert all(len(parts) > 1 for parts in ours), "modules name the modules they need"
    assert {parts[1] for parts in ours} <= set(MAY_IMPORT[module])


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_only_the_transform_knows_optax(module):
    uses_optax = any(name.split(".")[0] == "optax" for name in imported_by(module))
    assert uses_optax == (module in ("transform", "update", "splice"))


@pytest.mark.parametrize("module", [name for name in MAY_IMPORT if name != "__main__"])
def test_extras_are_imported_only_inside_functions(module):
    at_import = {name.split(".")[0] for name in names_in(tree_of(module).body)}
    assert at_import - set(sys.stdlib_module_names) <= RUN_TIME | {"jaxprune"}


def test_importing_jaxprune_loads_nothing_but_its_own_modules():
    program = """
import sys
import chex, jax, jax.numpy, numpy, optax
before = set(sys.modules)
import jaxprune
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name.split(".")[0] for name in sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    added, loaded = (set(line.split()) for line in run.stdout.splitlines())
    assert added - set(sys.stdlib_module_names) == {"jaxprune"}
    extras = {"flax", "rich", "matplotlib", "typer", "tqdm", "sklearn", "orbax", "scipy"}
    assert not extras & loaded


def test_nothing_public_is_missing():
    aliases = [
        alias
        for node in tree_of("__init__").body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert {alias.asname for alias in aliases} == PUBLIC
    assert all(alias.name == alias.asname for alias in aliases), "`x as x` marks what is public"
    assert all(hasattr(jaxprune, name) for name in PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_everything_public_has_a_docstring_with_an_example_that_runs(name):
    thing = getattr(jaxprune, name)
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        source = tree_of(type(thing).__module__.split(".")[1])
        after = [
            following
            for node, following in zip(source.body, source.body[1:], strict=False)
            if isinstance(node, ast.Assign) and node.targets[0].id == name
        ]
        assert isinstance(after[0].value.value, str), "a string below the value says what it is"
        return
    text = inspect.getdoc(thing)
    assert text.split("\n\n")[0].endswith("."), "a sentence comes first"
    example = text.partition("Example:")[2]
    assert doctest.DocTestParser().get_examples(example), "pytest runs it"


FUNCTIONS = sorted(name for name in PUBLIC if inspect.isfunction(getattr(jaxprune, name, None)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_explained_all_or_none(name):
    text = inspect.getdoc(getattr(jaxprune, name))
    arguments = inspect.signature(getattr(jaxprune, name)).parameters
    explained = [argument for argument in arguments if f"\n  {argument}: " in text]
    assert explained == (list(arguments) if "\nArgs:\n" in text else [])
