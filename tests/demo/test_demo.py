"""The demo ends on the same bits however often it stops, and its folder is always valid.

Jobs here are a few steps of narrow networks: what counts is that all parts run and fit together.
"""

import dataclasses
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

for _extra in ("flax", "matplotlib", "orbax.checkpoint", "rich", "sklearn", "tqdm", "typer"):
    pytest.importorskip(_extra)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

import jaxprune  # noqa: E402
from jaxprune.__main__ import app  # noqa: E402
from jaxprune.demo import cli, job  # noqa: E402
from jaxprune.demo.config import Config, networks, quick  # noqa: E402
from jaxprune.demo.data import load  # noqa: E402
from jaxprune.demo.interrupt import stop_requested  # noqa: E402
from jaxprune.demo.network import (  # noqa: E402
    conv_as_matmul,
    init_params,
    match_widths,
    n_params_of,
)
from jaxprune.demo.pictures import AGAINST_NONZEROS, OVER_STEPS  # noqa: E402
from jaxprune.demo.report import answer, compare, partners, summarize  # noqa: E402
from jaxprune.demo.store import Store  # noqa: E402
from jaxprune.demo.train import digest, make_trainer, result_of  # noqa: E402

# What `--quick` starts from here: narrower networks and smaller batches.
QUICK = dataclasses.replace(quick(), widths=(8, 12, 16), batch_size=8)
OPTIONS = ("--quick", "--seeds", "2", "--steps", "100", "--sparsity", "0.9")
TINY = dataclasses.replace(QUICK, sparsities=(0.9,), steps=100)
SPARSE = networks(TINY)[1]
MAIN = f"""
import sys
from jaxprune.__main__ import app
from jaxprune.demo import cli
from jaxprune.demo.config import Config
cli.quick = lambda: {QUICK!r}
app(sys.argv[1:])
"""


@pytest.fixture(autouse=True, scope="module")
def narrow_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "quick", lambda: QUICK)
        yield


def do(folder, *, resume=False, stop=lambda: False):
    results = job.prepare(TINY, folder, resume=resume)
    return job.train(TINY, folder, results, stop=stop, progress=False)


def after(n):
    """A `stop` that is True from the n-th time it is asked."""
    asked = itertools.count(1)
    return lambda: next(asked) >= n


def outcome(folder):
    """All of the results that must not depend on how often the job was stopped."""
    results = Store(folder).read()
    return {name: results[name] for name in ("finished", "config", "networks", "summary", "runs")}


def restored(folder, network, seed):
    """The checkpoint of a run, in the tree that its trainer makes; None if there is none."""
    target = make_trainer(network, TINY).init(jax.random.key(0))
    return Store(folder).restore(f"{network.name}-seed-{seed}", target)


def checkpoint_digests(folder):
    """The bits of each run's checkpoint."""
    runs = itertools.product(networks(TINY), range(TINY.n_seeds))
    states = {(network.name, seed): restored(folder, network, seed) for network, seed in runs}
    return {run: None if state is None else digest(state) for run, state in states.items()}


def invoke(*words):
    """Exit code, stdout and stderr of the command. Old versions of CliRunner mix the last two."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        app(["demo", *map(str, words)])
    return SimpleNamespace(exit_code=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def demo_process(*words, **kwargs):
    command = [sys.executable, "-c", MAIN, "demo", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the finished job of a command that nobody stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    return folder, invoke(*OPTIONS, "--out", folder)


# --- stop and resume


@pytest.mark.parametrize(
    "n", (2, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 12)))
)
def test_stopped_and_resumed_it_ends_on_the_same_bits(finished, tmp_path, n):
    with pytest.raises(job.Stopped, match=r"seed [01], step (0|50) of 100"):
        do(tmp_path, stop=after(n))
    assert not Store(tmp_path).read()["finished"]
    do(tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(finished[0])
    assert checkpoint_digests(tmp_path) == checkpoint_digests(finished[0])


def test_stopped_after_every_chunk_it_ends_on_the_same_bits(finished, tmp_path):
    n_stops = 0
    results = job.prepare(TINY, tmp_path)
    while not results["finished"]:
        try:
            job.train(TINY, tmp_path, results, stop=after(2), progress=False)
        except job.Stopped:
            n_stops += 1
        results = job.prepare(TINY, tmp_path, resume=True)
    assert n_stops == 6 * TINY.n_chunks - 1
    assert outcome(tmp_path) == outcome(finished[0])


def test_a_checkpoint_whose_result_was_not_written_counts(finished, tmp_path):
    with pytest.raises(job.Stopped):
        do(tmp_path, stop=after(TINY.n_chunks + 1))
    results = Store(tmp_path).read()
    results["runs"] = []  # as if the process had died between two writes
    Store(tmp_path).write(results)
    do(tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(finished[0])


def test_only_the_first_seed_keeps_its_checkpoint(finished):
    kept = {run: bits is not None for run, bits in checkpoint_digests(finished[0]).items()}
    assert kept == {(n.name, seed): seed == 0 for n in networks(TINY) for seed in range(2)}


def test_resuming_a_finished_job_shows_it_again_and_trains_nothing(finished):
    folder, first = finished
    before = (folder / "results.json").read_bytes()
    again = invoke(*OPTIONS, "--out", folder, "--resume")
    assert again.exit_code == 0
    assert "nothing left to train" in again.stderr
    assert again.stdout == first.stdout
    shown = invoke(*OPTIONS, "--out", folder, "--resume", "--json")
    assert json.loads(shown.stdout) == json.loads(before)
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_a_signal_is_a_request_to_stop(number):
    before = signal.getsignal(number)
    with stop_requested() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
    assert signal.getsignal(number) is before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs kill")
def test_a_real_signal_leaves_a_command_that_resumes(finished, tmp_path):
    folder = tmp_path / "out"
    process = demo_process(*OPTIONS, "--out", "out", cwd=tmp_path)
    try:
        while not (Store(folder).read() or {"runs": []})["runs"]:
            assert process.poll() is None
            time.sleep(0.05)
        # A run, and the tracing of two networks, are still to come.
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    last_line = errors.strip().splitlines()[-1]
    assert last_line.startswith("Stopped at ")
    assert last_line.endswith(
        f"To continue: python -m jaxprune demo {' '.join(OPTIONS)} --out out --resume"
    )
    # Resumed in this process, where everything is compiled already.
    resumed = invoke(*OPTIONS, "--out", folder, "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    assert outcome(folder) == outcome(finished[0])
    assert checkpoint_digests(folder) == checkpoint_digests(finished[0])


# --- files and output


def test_the_command_leaves_table_pictures_checkpoints_and_results(finished):
    folder, result = finished
    assert result.exit_code == 0, result.stderr
    for words in ("dense", "sparse 90%", "small dense", "standard errors"):
        assert words in result.stdout
    table, _, _ = result.stdout.partition("└")
    assert max(map(len, table.splitlines())) <= 80
    assert "100%" in result.stderr  # of the progress bar
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "checkpoints",
        OVER_STEPS,
        AGAINST_NONZEROS,
    }
    for picture in (OVER_STEPS, AGAINST_NONZEROS):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_results_say_where_they_come_from(finished):
    results = Store(finished[0]).read()
    assert results["command"] == f"python -m jaxprune demo {' '.join(OPTIONS)} --out {finished[0]}"
    assert results["finished"]
    assert results["seconds"] > 0
    environment = results["environment"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["jaxprune"] == jaxprune.__version__
    assert environment["device"].startswith(jax.default_backend())
    assert [run["seed"] for run in results["runs"]] == [0, 1] * 3


def test_the_quick_table_has_two_sparse_rows_with_partners():
    kinds = [network.kind for network in networks(quick())]
    assert kinds == ["dense", "sparse", "small dense", "sparse", "small dense"]


def test_every_run_ends_at_the_planned_number_of_nonzeros(finished):
    planned = {network.name: network for network in networks(TINY)}
    for run in Store(finished[0]).read()["runs"]:
        network = planned[run["network"]]
        assert run["n_nonzero"] == network.n_nonzero == network.n_params - run["n_zero"][-1]
        assert run["n_zero"] == sorted(run["n_zero"])
        assert len(run["n_zero"]) == len(run["n_correct"]) == TINY.n_chunks


def test_the_checkpoint_is_as_sparse_as_the_table_says(finished):
    state = restored(finished[0], SPARSE, 0)
    jaxprune.check(state.params, state.opt_state)
    report = jaxprune.summarize(state.params)
    assert report.size - report.n_zero == SPARSE.n_nonzero


def test_a_result_is_refused_where_a_dropped_weight_came_back(finished):
    state = restored(finished[0], SPARSE, 0)
    result_of(SPARSE, 0, state, n_test=1397)
    dense = jax.tree.map(lambda p: jnp.where(p == 0, 1.0, p), state.params)
    with pytest.raises(ValueError, match="dropped weights"):
        result_of(SPARSE, 0, state._replace(params=dense), n_test=1397)
    with pytest.raises(ValueError, match="were planned"):
        result_of(SPARSE._replace(n_nonzero=1), 0, state, n_test=1397)


def test_runs_of_different_seeds_differ(finished):
    digests = [run["params_sha256"] for run in Store(finished[0]).read()["runs"]]
    assert len(set(digests)) == len(digests)


# --- errors


def test_a_folder_with_a_job_is_not_overwritten(finished, tmp_path):
    folder, _ = finished
    before = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"contains a finished job\. To show it: .* --resume\."):
        job.prepare(TINY, folder)
    assert (folder / "results.json").read_bytes() == before
    job.prepare(TINY, tmp_path)
    with pytest.raises(ValueError, match=r"an unfinished job\. To continue it: .* --resume\."):
        job.prepare(TINY, tmp_path)


def test_resume_refuses_another_configuration(finished):
    folder, _ = finished
    result = invoke("--quick", "--seeds", 2, "--steps", 50, "--out", folder, "--resume")
    assert result.exit_code == 1
    assert "another configuration: sparsities was [0.9] and is now [0.75, 0.95]" in result.stderr
    assert "steps was 100 and is now 50" in result.stderr
    assert f"(python -m jaxprune demo {' '.join(OPTIONS)} --out {folder} --resume)" in result.stderr


def test_resume_refuses_an_environment_with_other_bits(tmp_path):
    results = job.prepare(TINY, tmp_path)
    results["environment"]["versions"]["jax"] = "0.0.1"
    results["environment"]["n_cpus"] = 99
    results["environment"]["commit"] = "another"  # does not matter
    Store(tmp_path).write(results)
    differ = r"n_cpus was 99 and is now \d+, jax was 0\.0\.1 and is now [^ ]+\."
    with pytest.raises(ValueError, match=rf"another environment: {differ}"):
        job.prepare(TINY, tmp_path, resume=True)


def test_resume_needs_something_to_resume(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to resume: .*results\.json does not exist"):
        job.prepare(TINY, tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_checkpoints_without_results_are_not_taken_over(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"results\.json is missing"):
        job.prepare(TINY, tmp_path)


def test_results_that_are_not_json_are_named(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        job.prepare(TINY, tmp_path, resume=True)


@pytest.mark.parametrize(
    "words, message",
    (
        (("--steps", 10), "steps must be a positive multiple of 50"),
        (("--seeds", -1), "n_seeds must be at least 1"),
        (("--sparsity", 90), "Did you mean 0.9?"),
        (("--sparsity", 0.5, "--sparsity", 0.5), "all different"),
    ),
)
def test_options_that_make_no_sense_are_refused(tmp_path, words, message):
    result = invoke(*words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ("flax", "sklearn", "matplotlib", "orbax"))
def test_a_missing_extra_is_named(monkeypatch, tmp_path, package):
    for name in list(sys.modules):
        if name.startswith(("jaxprune.demo.", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
        if name.startswith("jaxprune.demo."):
            monkeypatch.delattr(jaxprune.demo, name.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, package, None)
    result = invoke("--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{package} is not installed. Type: pip install 'jaxprune[demo]'" in result.stderr


@pytest.mark.parametrize("command, extra", (("demo", "demo"), ("inspect", "cli")))
def test_without_typer_the_command_line_says_what_to_install(command, extra):
    code = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('jaxprune.__main__')"
    words = [sys.executable, "-c", code, command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    line = f"jaxprune: typer is not installed. Type: pip install 'jaxprune[{extra}]'\n"
    assert done.stderr == line


def test_importing_jaxprune_imports_no_extra():
    code = (
        "import sys, jaxprune, jaxprune.demo, jaxprune.demo.interrupt\n"
        "extras = ('typer', 'flax', 'rich', 'tqdm', 'matplotlib', 'sklearn', 'orbax')\n"
        "print([name for name in extras if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- network and data


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("padding", ("SAME", "VALID", ((1, 2), (0, 1))))
def test_the_matrix_product_is_the_convolution(getkey, stride, padding):
    images = jax.random.normal(getkey(), (2, 8, 7, 3))
    kernel = jax.random.normal(getkey(), (3, 2, 3, 5))
    expected = lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    result = conv_as_matmul(images, kernel, (stride, stride), padding)
    np.testing.assert_allclose(result, expected, atol=1e-5)  # the order of 18 additions differs


@pytest.mark.parametrize("widths", ((1, 1, 1), (3, 4, 5), (32, 48, 64)))
def test_the_count_is_that_of_the_params(widths):
    shapes = jax.eval_shape(lambda key: init_params(key, widths), jax.random.key(0))
    assert n_params_of(widths) == sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("config", (Config(), quick()), ids=("full", "quick"))
def test_small_dense_matches_the_nonzeros_within_one_percent(config):
    rows = {network.name: network for network in networks(config)}
    for sparsity in config.sparsities:
        sparse, small = rows[f"sparse-{sparsity:g}"], rows[f"small-dense-{sparsity:g}"]
        assert small.n_params == small.n_nonzero == n_params_of(small.widths)
        assert abs(small.n_nonzero - sparse.n_nonzero) <= 0.01 * sparse.n_nonzero


def test_widths_that_fit_exactly_are_found():
    for widths in ((32, 48, 64), (16, 24, 32), (2, 3, 4)):
        assert match_widths((32, 48, 64), n_params_of(widths)) == widths


def test_the_split_has_every_image_once():
    data = load(400)
    images = np.concatenate([data.train_images, data.test_images])
    assert images.shape == (1797, 8, 8, 1)
    assert images.min() == 0
    assert images.max() == 1
    order = [np.sort(x.reshape(len(x), -1), axis=0) for x in (images, _all_digits())]
    np.testing.assert_array_equal(*order)


def _all_digits():
    from sklearn.datasets import load_digits

    return (load_digits().images / 16).astype(np.float32)


# --- numbers of the table


def row(mean, sd, n_seeds=4, kind="sparse", sparsity=0.9):
    return {
        "accuracy_mean": mean,
        "accuracy_sd": sd,
        "n_seeds": n_seeds,
        "kind": kind,
        "sparsity": sparsity,
    }


@pytest.mark.parametrize(
    "mean, sd, verdict",
    ((0.93, 0.01, "better"), (0.91, 0.02, "tie"), (0.87, 0.01, "worse"), (0.99, None, "one seed")),
)
def test_two_standard_errors_make_a_verdict(mean, sd, verdict):
    # sd 0.01 and 4 seeds on both sides: two standard errors are 2 sqrt(2 * 0.01**2 / 4) = 0.0141
    assert compare(row(mean, sd), row(0.9, 0.01))[1] == verdict


def test_the_answer_names_every_size_under_its_verdict():
    summary = [row(0.97, 0.001, kind="dense", sparsity=0.0)]
    for sparsity, mean in ((0.5, 0.95), (0.75, 0.9), (0.985, 0.8)):
        summary.append(row(mean, 0.001, sparsity=sparsity))
        summary.append(row(0.9, 0.001, kind="small dense", sparsity=sparsity))
    assert [pair[0]["sparsity"] for pair in partners(summary)] == [0.5, 0.75, 0.985]
    assert answer(summary) == (
        "Sparse against small dense of the same size: better at 50%; a tie at 75%; worse at 98.5%."
    )


def test_mean_and_spread_are_over_the_runs_of_a_network(finished):
    results = Store(finished[0]).read()
    for line in summarize(results):
        runs = [run["accuracy"] for run in results["runs"] if run["network"] == line["name"]]
        assert line["n_seeds"] == len(runs) == 2
        assert line["accuracy_mean"] == pytest.approx(np.mean(runs), rel=1e-12)  # another summation
        assert line["accuracy_sd"] == pytest.approx(np.std(runs, ddof=1), rel=1e-9, abs=1e-15)
