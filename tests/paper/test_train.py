"""The trained networks: data, results, and resuming a stopped run."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")
pytest.importorskip("tqdm")
pytest.importorskip("sklearn")
pytest.importorskip("typer")

from typer.testing import CliRunner

from benchmarks.paper import (
    __main__ as commands,
    digits,
    findings,
    phrases,
    pictures,
    store,
    summary,
    text,
)
from benchmarks.paper.__main__ import app
from benchmarks.paper.pruning import Pruning
from benchmarks.paper.recurrent import LanguageModel
from benchmarks.paper.study import (
    Study,
    match_width,
    n_params_of,
    networks_of,
    shapes_of,
    sparse_network,
)

pytestmark = pytest.mark.slow

INPUTS = (jax.ShapeDtypeStruct((1, 2), jnp.int32),)


def library(folder):
    """A few Python sources, so that tests do not read all of the standard library."""
    for i in range(40):
        lines = [f"def f{j}(x):\n    return x + {i * j}\n" for j in range(40)]
        (folder / f"module_{i}.py").write_text("\n".join(lines))
    return folder


def tiny(folder, **changes):
    fields = {
        "name": "tiny",
        "title": "tiny",
        "task": lambda: text.make_task(4, 8, 4, 16, folder),
        "module": lambda width: LanguageModel(text.SYMBOLS, width, n_layers=1),
        "width": 12,
        "measure": "bits_per_byte",
        "lower_is_better": True,
        "steps": 12,
        "chunk": 4,
        "sparsities": (0.9,),
        "seeds": 2,
    }
    return Study(**(fields | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny study with its results."""
    study = tiny(library(tmp_path_factory.mktemp("library")))
    out = tmp_path_factory.mktemp("results")
    return study, out, store.run(study, out)


def test_every_run_ends_with_the_planned_nonzeros(finished):
    study, _, results = finished
    planned = {row["name"]: row["n_nonzero"] for row in results["networks"]}
    assert planned.keys() == {"dense", "sparse-0.9", "small-dense-0.9"}
    assert len(results["runs"]) == 3 * study.seeds
    for run in results["runs"]:
        assert run["n_nonzero"] == planned[run["network"]]
        assert len(run["losses"]) == study.steps // study.chunk


def test_a_stopped_study_resumes_to_the_same_bits(finished, monkeypatch, tmp_path):
    study, _, results = finished
    monkeypatch.setattr(store, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    saves = []

    def save(*args):
        saves.append(args)
        real(*args)
        if len(saves) == 5:  # in the second run, after its second chunk
            raise KeyboardInterrupt

    real = store._save
    monkeypatch.setattr(store, "_save", save)
    with pytest.raises(KeyboardInterrupt):
        store.run(study, tmp_path, networks=only_sparse)
    interrupted = json.loads(store.results_file(study, tmp_path).read_text())
    assert len(interrupted["runs"]) == 1
    resumed = store.run(study, tmp_path, resume=True, networks=only_sparse)
    assert len(saves) == 6  # three chunks in each of two runs: none ran twice
    uninterrupted = [r for r in results["runs"] if r["network"] == "sparse-0.9"]
    assert [{**r, "seconds": 0} for r in resumed["runs"]] == [
        {**r, "seconds": 0} for r in uninterrupted
    ]
    assert [p.name for p in tmp_path.iterdir()] == [store.results_file(study, tmp_path).name]


def test_results_of_another_configuration_are_not_resumed(finished):
    study, out, _ = finished
    with pytest.raises(store.OtherStudy, match="results of another config"):
        store.run(dataclasses.replace(study, learning_rate=1e-4), out, resume=True)
    with pytest.raises(store.OtherStudy, match="results of other networks"):
        store.run(study, out, resume=True, networks=only_sparse)


def test_networks_can_be_added_to_results(finished, tmp_path):
    study, out, before = finished
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    with_erk = dataclasses.replace(study, erk=True)
    rows = networks_of(with_erk, INPUTS)
    assert [row.kind for row in rows] == ["dense", "sparse", "small dense", "ERK"]
    after = store.run(with_erk, tmp_path, resume=True)
    assert after["finished"]
    assert after["runs"][: len(before["runs"])] == before["runs"]
    assert [run["network"] for run in after["runs"][len(before["runs"]) :]] == ["erk-0.9"] * 2


def test_the_command_says_so_without_a_traceback(monkeypatch, tmp_path):
    def run(*_, **__):
        raise store.OtherStudy("file.json holds results of another config.")

    monkeypatch.setattr(store, "run", run)
    result = CliRunner().invoke(app, ["lstm", "--quick", "--resume", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--resume" in result.output
    assert "another config" in result.output


def test_tables_and_plots_are_made_from_the_results_file(finished):
    study, out, results = finished
    path = store.results_file(study, out)
    assert json.loads(path.read_text()) == json.loads(json.dumps(results))
    assert summary.table(results, study).row_count == 2
    assert all(file.stat().st_size > 0 for file in pictures.draw(results, path))


def test_verdicts_need_two_standard_errors():
    def row(mean, sd: float | None = 1.0):
        return {"mean": mean, "sd": sd, "n": 4}

    assert summary.compare(row(1.0), row(3.0), True)[1] == "better"
    assert summary.compare(row(1.0), row(3.0), False)[1] == "worse"
    assert summary.compare(row(1.0), row(2.0), True)[1] == "tie"
    assert summary.compare(row(1.0, None), row(9.0), True)[1] == "one seed"


def test_small_dense_networks_have_the_nearest_count_of_all_widths(tmp_path):
    study = tiny(tmp_path, width=40)
    counts = {w: n_params_of(study, w, INPUTS) for w in range(1, 41)}
    for n in (500, 3000, 9000, counts[40]):
        width = match_width(study, n, INPUTS)
        assert abs(counts[width] - n) == min(abs(count - n) for count in counts.values())


def test_networks_with_fewer_layers_have_the_nearest_count_of_all_widths_too(tmp_path):
    one_layer = lambda width: LanguageModel(text.SYMBOLS, width, n_layers=1)
    study = tiny(tmp_path, width=20, shallow=one_layer, sparsities=(0.5, 0.9))
    study = dataclasses.replace(study, module=lambda width: LanguageModel(text.SYMBOLS, width))
    shallow = dataclasses.replace(study, module=one_layer)
    counts = [n_params_of(shallow, w, INPUTS) for w in range(1, 4 * study.width)]
    rows = networks_of(study, INPUTS)
    assert [row.kind for row in rows] == ["dense", *["sparse", *summary.SMALL_KINDS] * 2]
    for sparse, small, other in zip(rows[1::3], rows[2::3], rows[3::3], strict=True):
        assert small.sparsity == other.sparsity == sparse.sparsity
        assert study.module_of(other).n_layers == 1
        nearest = min(counts, key=lambda n: abs(n - sparse.n_nonzero))
        assert other.n_params == other.n_nonzero == nearest
        assert counts[other.width - 1] == nearest


def test_a_sparse_network_is_compared_with_the_better_small_one():
    def row(kind, mean, sparsity=0.9):
        return {"kind": kind, "sparsity": sparsity, "mean": mean}

    sparse, small, shallow = (row(k, m) for k, m in zip(KINDS, (2.0, 1.0, 3.0), strict=True))
    alone = row("sparse", 1.0, 0.5)
    for rows in ([sparse, small, shallow, alone], [alone, shallow, small, sparse]):
        assert summary.pairs(rows, lower_is_better=True) == [(sparse, small)]
        assert summary.pairs(rows, lower_is_better=False) == [(sparse, shallow)]
    assert summary.pairs([sparse, shallow], lower_is_better=True) == [(sparse, shallow)]


KINDS = ("sparse", *summary.SMALL_KINDS)


def test_the_network_with_one_layer_has_as_many_weights_as_that_with_two():
    one, two = (
        n_params_of(study, study.width, INPUTS)
        for study in (text.one_layer_study("cpu"), text.study("cpu"))
    )
    assert one == pytest.approx(two, rel=0.005)
    rows = text.networks_with_erk(text.one_layer_study("cpu"), INPUTS)
    assert {row.kind for row in rows} == {"dense", "sparse", "ERK", "small dense"}


def test_a_network_and_its_partner_differ_by_less_than_a_width_step(tmp_path):
    study = tiny(tmp_path, width=128, sparsities=(0.5, 0.9))
    for sparse, small in zip(*[iter(networks_of(study, INPUTS)[1:])] * 2, strict=True):
        step = n_params_of(study, small.width + 1, INPUTS) - small.n_params
        assert abs(sparse.n_nonzero - small.n_nonzero) <= step


@pytest.mark.parametrize("spread", ("uniform", "erk", "global"))
def test_every_distribution_leaves_equally_many_weights(tmp_path, spread):
    study = tiny(tmp_path, width=64)
    uniform = sparse_network(study, "a", "sparse", Pruning(0.9, 0, 10, 5), INPUTS)
    spread_out = sparse_network(study, "b", "sparse", Pruning(0.9, 0, 10, 5, spread=spread), INPUTS)
    assert abs(uniform.n_nonzero - spread_out.n_nonzero) <= 4  # rounded once in each of four leaves


def test_a_tenth_of_the_files_is_held_out_by_their_names():
    held_out = [text.is_held_out(f"package/file_{i}.py") for i in range(5000)]
    assert 0.08 < np.mean(held_out) < 0.12
    assert text.is_held_out("a.py") == text.is_held_out("a.py")


def test_symbols_are_one_per_printable_byte():
    printable = bytes([10, *range(32, 127)])
    assert text.symbols_of(printable).tolist() == list(range(96))
    assert set(text.symbols_of(bytes(range(127, 256))).tolist()) == {96}


def test_augmentation_keeps_an_image_where_nothing_is_drawn(monkeypatch, getkey):
    images = digits.load(100).train_images
    assert images.shape == (100, 8, 8, 1)
    moved = digits.augment(images, getkey())
    assert moved.shape == images.shape
    assert not np.array_equal(moved, images)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **_: jnp.zeros(shape))
    np.testing.assert_allclose(digits.augment(images, getkey()), images, atol=1e-5)


@pytest.mark.parametrize("stride", (1, 2))
@pytest.mark.parametrize("groups", (1, 6))
def test_convolutions_without_xlas_own_are_convolutions(stride, groups, getkey):
    images = jax.random.normal(getkey(), (2, 8, 8, 6))
    kernel = jax.random.normal(getkey(), (3, 3, 6 // groups, 6))
    output = digits.convolve(images, kernel, (stride,) * 2, "SAME", feature_group_count=groups)
    expected = jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride,) * 2,
        "SAME",
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)  # sums in another order


SHALLOW = {
    "separable": lambda w: digits.MobileNetV1(
        10, blocks=((2 * w, 2),), first=w, first_stride=1, least=1, dropout=0.0
    ),
    "plain": lambda w: digits.PlainNet(w, stages=((1, 1), (2, 2))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_each_convolutional_network_trains_a_chunk_with_finite_loss(name, tmp_path):
    study = next(s for s in digits.studies("quick") if s.name == f"cnn-{name}")
    changes = {"module": SHALLOW[name], "steps": 4, "chunk": 2, "seeds": 1, "width": 6}
    study = dataclasses.replace(study, **changes)
    results = store.run(study, tmp_path, networks=only_sparse)
    assert np.isfinite(results["runs"][0]["losses"]).all()
    assert 0 <= results["runs"][0]["accuracy"] <= 100


def test_the_large_networks_are_wider_and_the_convolutional_ones_deeper():
    image = (jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32),)
    for small, large in zip(digits.studies("cpu"), digits.studies("gpu"), strict=True):
        counts = [len(jax.tree.leaves(shapes_of(s, 16, image)["params"])) for s in (small, large)]
        assert counts[1] > 1.5 * counts[0]
        assert large.width > small.width
    assert text.study("gpu").width == 1500
    assert n_params_of(text.study("gpu"), 1500, INPUTS) > 100 * n_params_of(
        text.study("cpu"), text.study("cpu").width, INPUTS
    )


def test_narrow_dense_networks_can_have_a_learning_rate_of_their_own():
    study = text.long_study("cpu")
    rates = {row.name: study.rate_of(row) for row in networks_of(study, INPUTS)}
    narrow = {f"small-dense-{s}" for s in (0.75, 0.8, 0.85, 0.9, 0.95, 0.975)}
    narrow |= {f"shallow-dense-{s}" for s in (0.9, 0.95, 0.975)}
    assert {name for name, rate in rates.items() if rate == study.small_learning_rate} == narrow
    assert {rate for name, rate in rates.items() if name not in narrow} == {study.learning_rate}
    assert study.config()["small_learning_rate"] == study.small_learning_rate
    short = text.study("cpu")
    assert {short.rate_of(row) for row in networks_of(short, INPUTS)} == {short.learning_rate}
    assert "small_learning_rate" not in short.config()


def only_sparse(study, inputs):
    return networks_of(study, inputs)[1:2]


def test_pieces_decode_to_their_text_and_an_unknown_letter_is_one_piece():
    texts = ["one hundred one", "hundred and two", "two"]
    pieces = phrases.Pieces(texts, 12)
    assert [pieces.decode(pieces.encode(t)) for t in texts] == texts
    assert len(pieces.encode("hundred")) < len("hundred")
    assert pieces.encode("ß") == [phrases.UNKNOWN]
    assert pieces.decode([*pieces.encode("two"), phrases.END, 7]) == "two"
    # The networks have room for more pieces than were learned.
    assert pieces.decode([len(pieces), *pieces.encode("two"), 10**6]) == "two"


def test_pairs_are_different_and_the_same_every_time():
    pytest.importorskip("num2words")
    pytest.importorskip("babel")
    pairs = phrases.make_pairs(300)
    assert pairs == phrases.make_pairs(300)
    for side in (0, 1):
        assert len({pair[side] for pair in pairs}) == 300


def answer(module, variables, *args, **kwargs) -> Any:
    return jax.jit(lambda v: module.apply(v, *args, **kwargs))(variables)


def test_teacher_forcing_and_greedy_decoding_agree_on_their_own_output(getkey):
    module = phrases._module_of(3, (11, 13))(8)
    source = jax.random.randint(getkey(), (5, 6), 1, 11).at[:, 4:].set(phrases.PAD)
    variables = jax.jit(module.init)(getkey(), source, source)
    out = answer(module, variables, source, 7, phrases.BEGIN, method="greedy")
    shifted = jnp.concatenate([jnp.full((5, 1), phrases.BEGIN), out[:, :-1]], 1)
    assert np.array_equal(answer(module, variables, source, shifted).argmax(-1), out)


def test_padding_of_the_source_changes_nothing(getkey):
    module = phrases._module_of(2, (11, 13))(8)
    source = jax.random.randint(getkey(), (3, 5), 1, 11)
    variables = jax.jit(module.init)(getkey(), source, source)
    padded = jnp.pad(source, ((0, 0), (0, 4)))
    a, b = (answer(module, variables, s, source) for s in (source, padded))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_a_translator_trains_and_is_measured_by_what_it_decodes(tmp_path):
    for module in ("num2words", "babel", "sacrebleu"):
        pytest.importorskip(module)
    study = next(s for s in phrases.studies("quick") if s.name == "seq2seq-de-en")
    study = dataclasses.replace(study, width=6, steps=4, chunk=2, seeds=1)
    [run] = store.run(study, tmp_path, networks=only_sparse)["runs"]
    assert np.isfinite(run["losses"]).all()
    assert 0 <= run["exact"] <= 100
    assert 0 <= run["bleu"] <= 100


def test_bleu_is_of_the_whole_corpus_and_100_only_where_all_is_right():
    pytest.importorskip("sacrebleu")
    right = ["twenty one thousand and four", "the first of May nineteen hundred"]
    assert phrases.bleu(right, right) == pytest.approx(100)
    assert 0 < phrases.bleu([right[0], "the first of June nineteen hundred"], right) < 100
    assert phrases.bleu(["", ""], right) == 0


@pytest.mark.slow
def test_the_quick_command_trains_writes_and_goes_on(tmp_path):
    command = ["lstm", "--quick", "--out", str(tmp_path)]
    for more in ([], ["--resume"]):
        result = CliRunner().invoke(app, command + more)
        assert result.exit_code == 0, result.output
        assert "90 %" in result.output
    written = json.loads((tmp_path / "paper-lstm-cpu.json").read_text())
    assert written["finished"]
    assert len(written["runs"]) == 10  # two of each: dense, uniform, ERK, two small dense networks
    assert {p.suffix for p in tmp_path.iterdir()} >= {".json", ".png"}


def test_an_unknown_study_is_an_error_that_lists_the_known_ones():
    result = CliRunner().invoke(app, ["cnn", "--only", "inception"])
    assert result.exit_code == 2
    assert "cnn-separable" in result.output


def test_a_missing_package_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "babel" else True)
    result = CliRunner().invoke(app, ["seq2seq", "--quick"])
    assert result.exit_code == 2
    assert "babel is not installed. Type: pip install -e '.[paper]'" in result.output


def test_every_finding_is_planned_at_one_sparsity_within_the_steps():
    study = findings.study("cpu")
    rows = findings.networks(study, INPUTS)
    assert len({row.name for row in rows}) == len(rows)
    assert findings.REFERENCE in {row.name for row in rows}
    counts = [row.n_nonzero for row in rows if row.pruning is not None]
    assert max(counts) - min(counts) <= 4  # rounded once in each of four leaves
    assert all(row.pruning is None or row.pruning.end < study.steps for row in rows)
    rarest = next(row.pruning for row in rows if row.name == "every 1000 steps")
    assert rarest.end - rarest.begin == 2 * rarest.every


@pytest.mark.slow
def test_a_finding_with_regrowth_trains_and_is_drawn(tmp_path):
    study = tiny(library(tmp_path), name="findings", measure="bits_per_byte", seeds=1, track=True)
    chosen = (findings.REFERENCE, "regrowth", "global")

    def few(study, inputs):
        return [row for row in findings.networks(study, inputs) if row.name in chosen]

    results = store.run(study, tmp_path, networks=few)
    assert [row["name"] for row in results["summary"]] == list(chosen)
    for run in results["runs"]:
        assert run["bits_per_byte_over_steps"][-1] == pytest.approx(run["bits_per_byte"], abs=1e-4)
    assert findings.table(results, study).row_count == 3
    assert all(f.exists() for f in pictures.draw(results, tmp_path / "x.json"))
