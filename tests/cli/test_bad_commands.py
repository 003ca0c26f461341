"""Wrong command lines: exit code, place, remedy, and nothing is written.

An error has the parts of those of the library (tests/bad_input.py): where it is (an option, a file
or a leaf), what was given, and what to type instead. It is one line, and says nothing of Python.
"""

import re

import ml_dtypes
import numpy as np
import pytest

from jaxprune._files.interchange import save_safetensors

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("zstandard")

from cli_command import run
from helpers import assert_says

HELP = "--help'"  # of the usage line
FRACTION = "in [0, 1), got"
FIX_90 = "Pass 0.9 for 90% zeros"
WHOLE = "write '.*kernel', not '*kernel'"
STRUCTURES = "nm:2:4, block:1x16, block:1x16:balanced or channel"
SUFFIXES = ".safetensors.zst (jaxprune), .safetensors or .npz"
LAYOUTS = ("--layout jax", "--layout torch")
AGAIN = "Copy or save it again"
# The files are written by `files`.
# A line, its exit code, and the three parts of its error.
LINES = [
    # files to read
    ("inspect modle", 1, "modle:", "no such file", "Did you mean model?"),
    ("prune modle -o o.npz -s 0.9", 1, "modle:", "no such file", "Did you mean model?"),
    ("inspect text", 1, "text:", "7307126058341131624 bytes", "Give another file"),
    ("inspect folder", 1, "folder:", "no orbax checkpoint", "shards with their index"),
    ("inspect short", 1, "short:", ("4007", "4016"), AGAIN),
    ("export short -o o.npz", 1, "short:", "cut off", AGAIN),
    ("prune short -o o.zst -s 0.5", 1, "short:", "cut off", AGAIN),
    ("inspect short.npz", 1, "short.npz:", "not readable as .npz", AGAIN),
    ("inspect empty", 1, "empty:", "only 0 bytes", AGAIN),
    ("inspect none.npz", 1, "none.npz:", "holds no arrays", "numpy.savez(path, **arrays)"),
    ("inspect bad.zst", 1, "bad.zst:", "damaged", AGAIN),
    ("prune bad.zst -o o.npz -s 0.5", 1, "bad.zst:", "damaged", AGAIN),
    ("inspect a.pt", 1, "a.pt:", "PyTorch checkpoint", "safetensors.torch.save_file"),
    ("prune a.pt -o o.npz -s 0.5", 1, "a.pt:", "PyTorch checkpoint", "safetensors.torch.save_file"),
    ("plan a.gguf -s 0.5", 1, "a.gguf:", "GGUF", "before it is converted"),
    ("inspect shards", 1, "shards/model.safetensors.index.json:", "not valid JSON", "again"),
    ("prune shards -o o -s 0.5", 1, "shards/model.safetensors.index.json:", "not valid", "again"),
    ("plan model -s 90%", 2, "--sparsity", "'90%' is not a number", "mean 0.9"),
    ("plan model -s 100%", 2, "--sparsity", "'100%' is not a number", "such as 0.9"),
    ("plan model -s 0,75", 2, "--sparsity", "'0,75'", "Did you mean 0.75?"),
    ("inspect model --check", 1, "model:", "has no masks", "Save the optimizer state"),
    # files to write
    ("export model -o out", 2, "out:", "suffix ''", (SUFFIXES, "--format jaxprune|safetensors")),
    ("export model -o o.pt", 2, "o.pt:", "suffix '.pt'", (SUFFIXES, "--format jaxprune|")),
    ("prune model -o folder -s 0.5", 2, "folder:", "suffix ''", SUFFIXES),
    ("export model -o o.npz --format x", 2, "o.npz:", "--format 'x'", "jaxprune|safetensors|npz"),
    ("prune model -o o.npz -s 0.5 --format zip", 2, "o.npz:", "--format 'zip'", SUFFIXES),
    ("export model -o o.npz --format csr", 2, "o.npz:", "written as a folder", "such as o."),
    ("prune model -o o.npz -s 0.5 --format csr", 2, "o.npz:", "as a folder", "such as o."),
    ("export bias -o o --format csr", 1, "nothing to write", "no leaf is 2-D", ".npz"),
    ("export bias -o o.npz", 1, "b:", "bfloat16", "Write .safetensors.zst or .safetensors"),
    ("export model -o no/o.npz", 1, "no/o.npz:", "folder no does not exist", "Create it first"),
    ("prune model -o no/o.zst -s 0.5", 1, "no/o.zst:", "folder no does not exist", "Create it"),
    ("export model -o old.npz", 1, "old.npz:", "exists", "--force"),
    ("prune model -o old.npz -s 0.5", 1, "old.npz:", "exists", "--force"),
    ("export model -o model --format npz", 1, "model:", "the file that is read", "--force"),
    # the sparsity
    ("plan model", 2, "--sparsity", "is missing", "--sparsity 0.9"),
    ("prune model -o o.npz", 2, "--sparsity", "is missing", "--sparsity 0.9"),
    ("plan model -s 90", 2, "--sparsity", f"{FRACTION} 90.0", "Did you mean 0.9?"),
    ("prune model -o o.npz -s 90", 2, "--sparsity", f"{FRACTION} 90.0", "Did you mean 0.9?"),
    ("plan model -s 1", 2, "--sparsity", f"{FRACTION} 1.0", "pass less, such as 0.99"),
    ("plan model -s nan", 2, "--sparsity", f"{FRACTION} nan", FIX_90),
    ("prune model -o o.npz -s inf", 2, "--sparsity", f"{FRACTION} inf", FIX_90),
    ("plan model -s -0.1", 2, "--sparsity", f"{FRACTION} -0.1", FIX_90),
    ("plan model -s half", 2, "--sparsity", "'half' is not a number", "such as 0.9"),
    ("plan tiny -s 0.9", 2, "w:", "(1, 2)", ("--exclude 'w'", "--override 'w=...'")),
    # overrides
    ("plan model -s 0.9 --override fc=50", 2, "--override 'fc=50'", "got 50.0", "mean 0.5?"),
    ("plan model -s 0.9 --override head=1", 2, "--override 'head=1'", "got 1.0", "0.99"),
    ("plan model -s 0.9 --override head=nan", 2, "--override 'head=nan'", "got nan", FIX_90),
    ("plan model -s 0.9 --override *=0.5", 2, "--override '*'", "regular expression", WHOLE),
    ("plan model -s 0.9 --override head", 2, "'head'", "REGEX=SPARSITY", "'.*head.*=0.5'"),
    ("plan model -s 0.9 --override head=", 2, "'head='", "REGEX=SPARSITY", "'.*head.*=0.5'"),
    ("plan model -s 0.9 --override =0.5", 2, "--override ''", "no leaf", "for example 'fc/bias'"),
    ("plan model -s 0 --override head=0.5", 2, "--override", "--sparsity must be", "--include"),
    ("plan model -s 0.9 --override hed=0.5", 2, "'hed'", "no leaf", "--override 'head=0.5'"),
    ("plan model -s 0.9 --override fc/bias=0.1", 2, "'fc/bias'", "1-D", "--include 'fc/bias'"),
    ("plan model -s 0.9 --override steps=0.1", 2, "'steps'", "dtype int64", "Remove the rule"),
    ("plan layers -s 0.5 --override w0.kernel.1=0", 2, "'w0.kernel.1'", "no leaf", "w0/kernel is"),
    ("plan torch -s 0.5 --override up/1=0.5", 2, "--override 'up/1'", "no leaf", "up is one leaf"),
    # which leaves
    ("plan bias -s 0.9", 2, "nothing to prune", "b (1-D)", "--include '.*'"),
    ("plan model -s 0.9 --include x", 2, "--include 'x'", "no leaf", "'fc/bias'"),
    ("plan model -s 0.9 --include *", 2, "--include '*'", "regular expression", WHOLE),
    ("plan model -s 0.9 --include (", 2, "--include '('", "regular expression", WHOLE),
    ("plan model -s 0.9 --include kernel", 2, "'kernel'", "fc/kernel", "--include '.*kernel'"),
    ("plan model -s 0.9 --include steps", 2, "steps:", "int64", "--exclude 'steps'"),
    ("plan model -s 0.9 --exclude [", 2, "--exclude '['", "regular expression", WHOLE),
    ("plan model -s 0.9 --exclude fc", 2, "--exclude 'fc'", "no leaf", "--exclude 'fc/.*'"),
    ("prune model -o o.npz -s 0.9 --exclude fc", 2, "'fc'", "no leaf", "--exclude 'fc/.*'"),
    ("plan model -s 0.9 --exclude .*", 2, "nothing to prune", "excluded by '.*'", "Exclude fewer"),
    ("plan float8 -s 0.5", 2, "nothing to prune", "quantised", "--include '.*'"),
    # structures
    ("plan model -s 0.9 --structure nm:2:4", 2, "fc/kernel:", "0.9", "--override 'fc/kernel=0.5'"),
    ("prune layers -o o.npz -s 0.75 --structure nm:2:4", 2, "all 9 leaves", "0.75", "0.5."),
    ("prune model -o o.npz --structure nm:3:7", 2, "fc/kernel: nm:3:7:-2", "(20, 30)", "--exclude"),
    ("plan model --structure nm:2:4:balanced", 2, "--structure 'nm", "only blocks", STRUCTURES),
    ("plan model --structure nm:5:4", 2, "--structure 'nm:5:4'", "1 to 3", STRUCTURES),
    ("plan model --structure nm:0:4", 2, "--structure 'nm:0:4'", "1 to 3", STRUCTURES),
    ("plan model --structure nm:2", 2, "--structure", "'nm:2'", STRUCTURES),
    ("plan model -s 0.9 --structure NM:2:4", 2, "--structure", "'NM:2:4'", STRUCTURES),
    ("plan model -s 0.9 --structure round", 2, "--structure", "'round'", STRUCTURES),
    ("plan model -s 0.5 --structure block:0x4", 2, "--structure", "length of 0", STRUCTURES),
    ("plan model -s 0.5 --structure block:", 2, "--structure", "'block:'", STRUCTURES),
    ("plan model -s 0.5 --structure block:2x2x2", 2, "fc/kernel:", "(20, 30)", "--exclude"),
    ("plan model -s 0.5 --structure channel:7", 2, "head: channel:7", "(30, 10)", "--exclude"),
    ("plan model -s 0.5 --structure channel:0:1", 2, "--structure", "channel:0:1", "channel:-1"),
    ("plan model -s 0.5 --structure channel:balanced", 2, "--structure", "only blocks", STRUCTURES),
    ("plan plain --structure nm:2:4", 2, "--structure nm:2:4", "unclear", LAYOUTS),
    ("plan plain -s 0.5 --structure channel", 2, "--structure channel", "unclear", LAYOUTS),
    ("plan torch --structure nm:2:4", 2, "up:", "no roles", ("--exclude 'up'", "nm:2:4:-2")),
    # ways to prune
    ("plan model -s 0.9 --layout troch", 2, "--layout", "'troch'", "Did you mean torch?"),
    ("plan model -s 0.9 --distribution globl", 2, "--distribution", "'globl'", "mean global?"),
    ("prune model -o o.npz -s 0.9 --distribution x", 2, "--distribution", "'x'", "uniform, erk"),
    ("prune model -o o.npz -s 0.9 --score snip", 2, "--score", "'snip'", "magnitude, random"),
    ("prune model -o o.npz -s 0.9 --ties x", 2, "--ties", "'x'", "index, hashed"),
    (
        *("plan model -s 0.9 --ties hashed --distribution global", 2, "--ties hashed"),
        *("--distribution global", "Use --ties index"),
    ),
    (
        *("plan model -s 0.9 --ties hashed --distribution l2", 2, "--ties hashed"),
        *("--distribution l2", "Use --ties index"),
    ),
    (
        *("plan layers -s 0.5 --distribution erk --structure nm:2:4", 2, "w0/kernel: erk", None),
        ("--distribution uniform", "--override"),
    ),
    (
        *("plan model -s 0.9 --distribution global --structure block:1x2:balanced", 2),
        *("fc/kernel:", "global pool", ("--distribution uniform", "--override")),
    ),
    # words that the command line does not know
    ("prune model -s 0.9", 2, "--out", "Missing option", HELP),
    ("export model", 2, "--out", "Missing option", HELP),
    # Some versions of typer write FILE and some file.
    ("inspect", 2, "inspect", "Missing argument", HELP),
    ("plan -s 0.5", 2, "plan", "Missing argument", HELP),
    ("inspect model --fast", 2, "--fast", "No such option", HELP),
    ("export model -o o.npz --sparsity 0.5", 2, "--sparsity", "No such option", HELP),
    ("plan model -s 0.5 -o o.npz", 2, "-o", "No such option", HELP),
    ("plan model extra -s 0.5", 2, "(extra)", "unexpected", HELP),
    ("prun model -s 0.5", 2, "'prun'", "No such command", "Try 'jaxprune --help'"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the files that the lines name."""
    folder, rng, one = tmp_path_factory.mktemp("files"), np.random.default_rng(0), np.float32(1)
    whole = {
        "fc": {"kernel": rng.normal(size=(20, 30)).astype("f4"), "bias": np.ones(30, "f4")},
        "head": rng.normal(size=(30, 10)).astype("f4"),
        "steps": np.arange(3),
    }
    trees = {
        "model": whole,
        "bias": {"b": np.ones(3, ml_dtypes.bfloat16)},
        "tiny": {"w": np.full((1, 2), one)},
        "layers": {f"w{i}": {"kernel": np.full((8, 4), one)} for i in range(9)},
        "plain": {"w1": np.full((8, 8), one), "w2": np.full((8, 4), one)},
        "float8": {"q": np.ones((8, 8), ml_dtypes.float8_e4m3fn)},
    }
    for name, tree in trees.items():
        save_safetensors(folder / name, tree)
    of_torch = {"a.weight": np.full((8, 8), one), "up": np.full((2, 8, 8), one)}
    save_safetensors(folder / "torch", of_torch, metadata={"format": "pt"})
    contents = {
        "text": b"hello hello",
        "short": (folder / "model").read_bytes()[:-9],
        "short.npz": b"PK\3\4 nothing",
        "empty": b"",
        "none.npz": b"PK\5\6" + bytes(18),
        "old.npz": b"old",
        "a.pt": b"PK\3\4",
        "a.gguf": b"GGUF",
        "bad.zst": b"\x28\xb5\x2f\xfd junk",
        "shards/model.safetensors.index.json": b"{",
    }
    (folder / "folder").mkdir()
    (folder / "shards").mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def contents_of(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


OF_PYTHON = re.compile(r"Traceback|NM\(|Block\(|Channel\(|schedule|overrides|roles=|axis=|__|int\(")


@pytest.mark.parametrize("line, code, where, given, remedy", LINES, ids=[x[0] for x in LINES])
def test_a_wrong_line_says_where_and_what_to_type_and_writes_nothing(
    files, monkeypatch, line, code, where, given, remedy
):
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "300")
    before = contents_of(files)
    out, error = run(*line.split(), code=code)
    assert out == ""
    error = " ".join(re.sub("[│╭╮╰╯─]", " ", error).split())
    for part in (where, given, remedy):
        assert_says(error, *((part,) if isinstance(part, str) else part or ()))
    assert not OF_PYTHON.search(error), error
    assert contents_of(files) == before


def test_there_are_at_least_100_wrong_lines_and_each_says_where_and_what_to_type():
    assert len({line for line, *_ in LINES}) == len(LINES) >= 100  # docs/promises.md says so
    assert all(code in (1, 2) and where and remedy for _, code, where, _, remedy in LINES)
    assert sum(given is None for *_, given, _ in LINES) <= 1
    commands = {line.split()[0] for line, *_ in LINES}
    assert commands > {"inspect", "plan", "prune", "export"}
