"""Small mutants of the package, each with the tests that must notice it.

`python -m tests.mutation` applies one mutant at a time to a copy of the package, and runs its
tests. `tests/integration/test_mutation.py` checks that the table fits the sources.
"""
