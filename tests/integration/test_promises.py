"""A few chunks of each promise; `python -m tests.promises` runs them all."""

import json

import pytest

from promises import __main__ as cli, long_run, runner
from promises.table import PROMISES

CHUNKS = [(name, chunk) for name, promise in PROMISES.items() for chunk in promise.few]
HOLD_NAN = pytest.mark.skip_in("debug_nans", reason="of all bit patterns, some are NaN")


@pytest.mark.parametrize(
    "name, chunk",
    [pytest.param(*case, marks=[HOLD_NAN] * (case[0] == "landing")) for case in CHUNKS],
)
def test_the_promise_holds(name, chunk):
    assert PROMISES[name].check(chunk) > 0


def test_a_long_run_counts_right_at_every_fire():
    assert long_run.check_all(2) == 20_000


def test_failures_are_recorded_and_a_run_resumes(tmp_path, monkeypatch, capsys):
    chunks = []

    def check(chunk):
        chunks.append(chunk)
        assert chunk != 1, "chunk one is wrong"
        return 10

    made = runner.Promise("made", "Something.", 3, check)
    monkeypatch.setitem(PROMISES, "made", made)
    assert cli.main(["made", "--chunks", "1", "--out", str(tmp_path)]) == 0
    assert cli.main(["made", "--resume", "--out", str(tmp_path)]) == 1
    assert chunks == [0, 1, 2]
    result = json.loads((tmp_path / "promise-made-cpu.json").read_text())
    assert (result["cases"], result["chunks"], result["finished"]) == (20, 3, True)
    (failure,) = result["failures"]
    assert failure["chunk"] == 1
    assert "chunk one is wrong" in failure["error"]
    assert "20 cases, 1 failures" in capsys.readouterr().out


def test_an_unknown_promise_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["speed"])
    assert "unknown speed: choose from selection, updates" in capsys.readouterr().err
