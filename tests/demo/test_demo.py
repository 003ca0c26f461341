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
import matplotlib.image  # noqa: E402
import matplotlib.style  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402

import jaxprune  # noqa: E402
from jaxprune.__main__ import app  # noqa: E402
from jaxprune.demo import cli, job  # noqa: E402
from jaxprune.demo.config import Config, networks, quick  # noqa: E402
from jaxprune.demo.data import compose, load, split  # noqa: E402
from jaxprune.demo.interrupt import stop_requested  # noqa: E402
from jaxprune.demo.network import (  # noqa: E402
    conv_as_matmul,
    init_params,
    match_widths,
    n_biases_of,
    n_params_of,
    shapes_of,
)
from jaxprune.demo.pictures import AGAINST_NONZEROS, OVER_STEPS, write_pictures  # noqa: E402
from jaxprune.demo.report import answer  # noqa: E402
from jaxprune.demo.store import Store  # noqa: E402
from jaxprune.demo.train import digest, make_trainer, results_of  # noqa: E402

# What `--quick` starts from here: narrower networks, smaller batches and fewer images.
QUICK = dataclasses.replace(
    quick(), widths=(4, 4, 6, 6, 8), batch_size=4, steps_per_chunk=50, n_train=99, n_test=40
)
OPTIONS = ("--quick", "--seeds", "2", "--steps", "100", "--sparsity", "0.9")
TINY = dataclasses.replace(QUICK, sparsities=(0.9,), steps=100)
NETWORKS = networks(TINY)
SPARSE = NETWORKS[1]
MAIN = f"""
import sys
from jaxprune.__main__ import app
from jaxprune.demo import cli, job
from jaxprune.demo.config import Config
cli.quick = lambda: {QUICK!r}
job._SECONDS_BETWEEN_SAVES = 0
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


def restored(folder, network):
    """The checkpoint of a network, in the tree that its trainer makes; None if there is none."""
    return Store(folder).restore(network.name, make_trainer(network, TINY).init())


def checkpoint_digests(folder):
    """The bits of the checkpoint of each network."""
    return {network.name: digest(restored(folder, network)) for network in NETWORKS}


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


@pytest.mark.parametrize("n", (2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 8))))
def test_stopped_and_resumed_it_ends_on_the_same_bits(finished, tmp_path, n):
    with pytest.raises(job.Stopped, match=r"step (0|50) of 100"):
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
    assert n_stops == len(NETWORKS) * TINY.n_chunks - 1
    assert outcome(tmp_path) == outcome(finished[0])


def test_a_checkpoint_whose_result_was_not_written_counts(finished, tmp_path):
    with pytest.raises(job.Stopped):
        do(tmp_path, stop=after(TINY.n_chunks + 1))
    results = Store(tmp_path).read()
    results["runs"] = []  # as if the process had died between two writes
    Store(tmp_path).write(results)
    do(tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(finished[0])


def test_killed_in_the_middle_of_training_it_ends_on_the_same_bits(finished, tmp_path, monkeypatch):
    """Without a request to stop: what was saved during training is all that is left."""
    made = make_trainer(SPARSE, TINY)
    calls = itertools.count(1)

    def advance(state, data):
        if next(calls) == 2:
            raise SystemExit
        return made.advance(state, data)

    folders = Store(tmp_path).folder / "checkpoints" / SPARSE.name
    with monkeypatch.context() as patch:
        patch.setattr(job, "_SECONDS_BETWEEN_SAVES", -1)
        patch.setattr(
            job,
            "make_trainer",
            lambda network, config, program: (
                made._replace(advance=advance)
                if network == SPARSE
                else make_trainer(network, config, program)
            ),
        )
        with pytest.raises(SystemExit):
            do(tmp_path)
    assert [path.name for path in folders.iterdir()] == ["50"]
    (folders / "100.orbax-checkpoint-tmp-1").mkdir()  # as if killed while it saved the next one
    do(tmp_path, resume=True)
    assert outcome(tmp_path) == outcome(finished[0])
    assert checkpoint_digests(tmp_path) == checkpoint_digests(finished[0])


def test_the_checkpoint_of_every_network_is_of_its_last_step(finished):
    for network in NETWORKS:
        state = restored(finished[0], network)
        assert int(state.step) == TINY.steps
        n_leaves = 2 * (len(network.widths) + 1)
        assert [len(leaf) for leaf in jax.tree.leaves(state.params)] == [TINY.n_seeds] * n_leaves


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
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGKILL))
def test_a_real_signal_leaves_a_command_that_resumes(finished, tmp_path, number):
    folder = tmp_path / "out"
    process = demo_process(*OPTIONS, "--out", "out", cwd=tmp_path)
    try:
        while not (folder / "checkpoints" / NETWORKS[1].name / "50").exists():
            assert process.poll() is None
            time.sleep(0.02)
        # A chunk, and the compilation of two networks, are still to come.
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert process.returncode == 130
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
    for words in ("90% uniform", "90% ERK", "narrower dense", "standard errors", "Result: "):
        assert words in result.stdout
    _, _, printed = result.stdout.partition("Three-digit numbers")
    assert max(map(len, printed.splitlines())) <= 80
    assert answer(Store(folder).read()["summary"]) in " ".join(printed.split())
    assert printed.split()[-1] == "images."  # the last line names what to read next
    assert "100%" in result.stderr  # of the progress bar
    assert {path.name for path in folder.iterdir()} == {
        "results.json",
        "checkpoints",
        OVER_STEPS,
        AGAINST_NONZEROS,
    }
    for picture in (OVER_STEPS, AGAINST_NONZEROS):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_pictures_are_opaque_and_white_whatever_the_style_of_the_user(finished, tmp_path):
    results = Store(finished[0]).read()
    with matplotlib.style.context("dark_background"):
        pictures = write_pictures(results, tmp_path)
    for path in pictures:
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] == 1800  # two for each pixel of 900
        assert (pixels[0, 0] == 1).all()
        assert (pixels[..., 3] == 1).all()
        assert path.read_bytes() == (finished[0] / path.name).read_bytes()


def test_the_results_say_where_they_come_from(finished):
    results = Store(finished[0]).read()
    assert results["command"] == f"python -m jaxprune demo {' '.join(OPTIONS)} --out {finished[0]}"
    assert results["finished"]
    assert results["seconds"] > 0
    environment = results["environment"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["versions"]["jaxprune"] == jaxprune.__version__
    assert environment["device"].startswith(jax.default_backend())
    assert [run["seed"] for run in results["runs"]] == [0, 1] * 5


def test_the_quick_table_has_one_sparsity():
    kinds = [network.kind for network in networks(quick())]
    assert kinds == ["dense", "uniform", "ERK", "narrower dense", "shallower dense"]


def test_every_run_ends_at_the_planned_number_of_nonzeros(finished):
    planned = {network.name: network for network in NETWORKS}
    for run in Store(finished[0]).read()["runs"]:
        network = planned[run["network"]]
        assert run["n_nonzero"] == network.n_nonzero == network.n_params - run["n_zero"][-1]
        assert run["n_zero"] == sorted(run["n_zero"])
        assert len(run["n_zero"]) == len(run["n_correct"]) == TINY.n_chunks


def first_seed(state):
    return jax.tree.map(lambda x: np.asarray(x)[0], state._replace(step=state.n_zero))


def test_the_checkpoint_is_as_sparse_as_the_table_says(finished):
    for network in NETWORKS[1:3]:
        state = first_seed(restored(finished[0], network))
        jaxprune.check(state.params, state.opt_state)
        report = jaxprune.summarize(state.params)
        assert report.size - report.n_zero == network.n_nonzero


def test_a_result_is_refused_where_a_dropped_weight_came_back(finished):
    state = restored(finished[0], SPARSE)
    assert [run["seed"] for run in results_of(SPARSE, state, n_test=40)] == [0, 1]
    dense = jax.tree.map(lambda p: jnp.where(p == 0, 1.0, p), state.params)
    with pytest.raises(ValueError, match="not pruned as the masks are"):
        results_of(SPARSE, state._replace(params=dense), n_test=40)
    with pytest.raises(ValueError, match="were planned"):
        results_of(SPARSE._replace(n_nonzero=1), state, n_test=40)


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
    result = invoke("--quick", "--seeds", 3, "--steps", 50, "--out", folder, "--resume")
    assert result.exit_code == 1
    assert "another configuration: n_seeds was 2 and is now 3" in result.stderr
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
        (("--steps", 10), "steps must be a positive multiple of 100"),
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


@pytest.mark.parametrize("widths", ((1, 1, 1, 1, 1), (2, 3, 4, 5, 6), Config().widths))
def test_the_counts_are_those_of_the_params(widths):
    leaves = jax.tree.leaves(shapes_of(widths))
    assert n_params_of(widths) == sum(leaf.size for leaf in leaves)
    assert n_biases_of(widths) == sum(leaf.size for leaf in leaves if leaf.ndim < 2)


def test_initial_kernels_have_the_variance_of_flax():
    params, again = (init_params(seed, Config().widths) for seed in (3, 3))
    assert digest(params) == digest(again) != digest(init_params(4, Config().widths))
    kernel = params["Conv_3"]["kernel"]
    assert kernel.shape == (3, 3, 32, 32)
    assert kernel.var() == pytest.approx(1 / (3 * 3 * 32), rel=0.1)  # of 9,216 draws
    assert not params["Conv_3"]["bias"].any()


@pytest.mark.parametrize("config", (Config(), quick()), ids=("full", "quick"))
def test_small_dense_matches_the_nonzeros_within_one_percent(config):
    rows = {network.name: network for network in networks(config)}
    for sparsity, small_kind in itertools.product(config.sparsities, ("narrower", "shallower")):
        small = rows[f"{small_kind}-dense-{sparsity:g}"]
        assert len(small.widths) == (5 if small_kind == "narrower" else 3)
        assert small.n_params == small.n_nonzero == n_params_of(small.widths)
        for kind in ("uniform", "erk"):
            n_nonzero = rows[f"{kind}-{sparsity:g}"].n_nonzero
            assert abs(small.n_nonzero - n_nonzero) <= 0.01 * n_nonzero


def test_widths_that_fit_exactly_are_found():
    for widths in ((16, 16, 32, 32, 48), (8, 8, 16, 16, 24), (2, 2, 4, 4, 6)):
        assert match_widths((16, 16, 32, 32, 48), n_params_of(widths)) == widths


def test_the_split_has_every_digit_once():
    (train, train_classes), (test, test_classes) = split(1200)
    assert train.shape == (1200, 8, 8)
    digits = np.concatenate([train, test]).reshape(1797, -1)
    classes = np.concatenate([train_classes, test_classes])
    expected, target = _all_digits()
    np.testing.assert_array_equal(_sorted_rows(digits, classes), _sorted_rows(expected, target))


def _sorted_rows(digits, classes):
    rows = np.column_stack([digits, classes])
    return rows[np.lexsort(rows.T)]


def _all_digits():
    from sklearn.datasets import load_digits

    pixels, target = load_digits(return_X_y=True)
    return (pixels / 16).astype(np.float32), target


@pytest.mark.parametrize("part", (0, 1), ids=("train", "test"))
def test_an_image_shows_the_digits_of_its_label_and_of_its_part(part):
    """Away from the overlaps and the shifts, each place is a digit of this part, pixel by pixel."""
    data = load(1200, 30, 30)
    images, labels = (data[2 * part], data[2 * part + 1])
    digits, classes = split(1200)[part]
    for image, label in zip(np.asarray(images[..., 0]), np.asarray(labels), strict=True):
        for place, (first, last) in enumerate(((0, 6), (2, 6), (2, 8))):
            at = 6 * place
            views = [image[top : top + 8, at + first : at + last] for top in range(3)]
            of_class = digits[classes == label[place]][:, :, first:last]
            assert any((of_class == view).all((1, 2)).any() for view in views)


def test_images_are_the_same_for_the_same_key_only():
    part = split(1200)[1]
    images = [compose(np.random.default_rng(key), *part, 5)[0] for key in (0, 0, 1)]
    np.testing.assert_array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()
    assert images[0].min() == 0
    assert images[0].max() == 1


@pytest.mark.parametrize("n_digits", (0, 1797))
def test_no_digit_to_train_or_to_test_on_is_an_error(n_digits):
    with pytest.raises(ValueError, match=r"n_digits must be between 1 and 1796"):
        load(n_digits, 1, 1)
