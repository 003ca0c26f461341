"""The examples that write logs run, shortened, and their logs hold the right numbers."""

import csv
import itertools
import pathlib
import struct
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples"
SHORTER = {"STEPS = 301": "STEPS = 61", "50, end_step=250, every=20": "10, end_step=50, every=10"}
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="an installed copy has no examples")


def run(name, monkeypatch, folder):
    """Runs an example over fewer steps; it writes into `folder`."""
    source = (FOLDER / name).read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert source.count(long) == 1
        source = source.replace(long, short)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(folder))
    exec(compile(source, str(FOLDER / name), "exec"), {"__name__": "__main__"})


def events(path):
    """The scalars in a TensorBoard file: name -> {step: value}.

    A record is the length of its data, a checksum, the data, and a checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    data, at, scalars = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        for value in event.summary.value:
            if value.HasField("simple_value"):
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def assert_tells_of_pruning(columns, steps):
    """Sparsity rises to 0.9 and every flip of a mask is counted once."""
    assert {"loss", "prune/flips", "prune/threshold/hidden/kernel"} <= columns.keys()
    sparsity = columns["prune/sparsity/hidden/kernel"]
    assert list(sparsity) == steps
    assert all(a <= b for a, b in itertools.pairwise(sparsity.values()))
    assert sparsity[steps[0]] == 0
    assert sparsity[steps[-1]] == pytest.approx(0.9, abs=1e-4)  # 7373 of 8192 weights
    thresholds = columns["prune/threshold/hidden/kernel"]
    assert thresholds[0] == 0 < thresholds[steps[-1]]
    assert sum(columns["prune/flips"].values()) == columns["prune/n_zero"][steps[-1]]


def test_the_csv_example_logs_sparsity_thresholds_and_flips(monkeypatch, tmp_path, capsys):
    run("log_csv.py", monkeypatch, tmp_path)
    with (tmp_path / "pruning.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: {int(row["step"]): float(row[name]) for row in rows} for name in rows[0]}
    assert_tells_of_pruning(columns, list(range(0, 61, 10)))
    assert capsys.readouterr().out.endswith("7 rows, final sparsity 0.9\n")


def test_the_tensorboard_example_logs_the_same(monkeypatch, tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    run("log_tensorboard.py", monkeypatch, tmp_path)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    assert_tells_of_pruning(events(path), list(range(0, 61, 10)))
    assert capsys.readouterr().out.endswith("7 steps logged, final sparsity 0.9\n")


def test_the_tensorboard_example_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SystemExit) as end:
        run("log_tensorboard.py", monkeypatch, tmp_path)
    assert end.value.code is None
    assert "pip install tensorboardX" in capsys.readouterr().out
