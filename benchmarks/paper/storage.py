"""How many bits the positions of the nonzeros take: bit mask, CSR, and the paper's CSR(C).

The values are not counted: in float32 they take 4 bytes each in every format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxprune._report.table import LeafReport

_POINTER_BITS = 32
_MOST_RUN_BITS = 16


class Overhead(NamedTuple):
    """Bits that store the positions of the nonzeros, summed over the pruned leaves.

    Attributes:
      bit_mask: one bit per weight, kept or not.
      csr: a column index for every nonzero, in as few bits as possible, and a 32-bit pointer for
        every row and for the end. The last axis of a kernel gives the columns of its matrix.
      run_length: the number of zeros before every nonzero, in `run_bits` bits: the compressed form
        of CSR and CSC in Parashar et al. (2017). A run too long for its field is split by stored
        zeros, whose run fields and 32-bit values are counted too. This is an expectation for zeros
        at independent positions; zeros of real masks are more clustered.
      run_bits: the width of a run field that minimizes `run_length`.
    """

    bit_mask: int
    csr: int
    run_length: float
    run_bits: int


def overhead_of(leaves: Iterable[LeafReport]) -> Overhead:
    """The overhead of all leaves with dropped weights; zero for a dense network."""
    pruned = [leaf for leaf in leaves if leaf.n_zero]
    if not pruned:
        return Overhead(0, 0, 0.0, 0)
    bits = min(range(1, _MOST_RUN_BITS + 1), key=lambda bits: _run_length(pruned, bits))
    return Overhead(
        sum(leaf.size for leaf in pruned),
        sum(map(_csr, pruned)),
        _run_length(pruned, bits),
        bits,
    )


def _csr(leaf: LeafReport) -> int:
    columns = leaf.shape[-1]
    rows = leaf.size // columns
    column_bits = max((columns - 1).bit_length(), 1)
    return (leaf.size - leaf.n_zero) * column_bits + (rows + 1) * _POINTER_BITS


def _run_length(leaves: Iterable[LeafReport], bits: int, value_bits: int = 32) -> float:
    total = 0.0
    for leaf in leaves:
        overlong = leaf.sparsity ** (2**bits)  # probability of a run of at least 2**bits zeros
        splits = overlong / (1 - overlong)  # stored zeros per nonzero; run lengths are geometric
        nonzero = leaf.size - leaf.n_zero
        total += nonzero * (bits + splits * (bits + value_bits))
    return total
