"""The mutants fit the sources; `python -m tests.mutation` runs the tests that must notice them."""

import functools
import re

import pytest

from mutation import __main__ as cli, runner
from mutation.table import MUTANTS

source_of = functools.cache(lambda file: (runner.ROOT / "jaxprune" / file).read_text())
text_of_tests = functools.cache(lambda file: (runner.ROOT / "tests" / file).read_text())


def test_every_mutant_changes_its_file_once_and_stays_python():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        compile(mutant.applied(source_of(mutant.file)), mutant.file, "exec")


def test_every_mutant_has_tests_that_exist_or_a_reason_why_it_is_equivalent():
    for mutant in MUTANTS:
        assert bool(mutant.tests) != bool(mutant.equivalent), mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name or 'test_'}", text_of_tests(file), re.MULTILINE), test


def test_a_mutant_that_no_longer_fits_says_what_to_do():
    mutant = MUTANTS[0]._replace(old="no such text")
    with pytest.raises(ValueError, match=f"must occur once in jaxprune/{mutant.file}, got 0"):
        mutant.applied(source_of(mutant.file))


def test_an_unknown_mutant_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["speed"])
    assert "unknown speed: choose from " in capsys.readouterr().err
