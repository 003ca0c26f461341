"""What it costs to say where the nonzeros are: a bit-mask, CSR, and the paper's CSR(C).

The values themselves are not counted here: they are 4 bytes each in float32, whatever the format.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxprune._report.table import LeafReport

_POINTER_BITS = 32
_MOST_RUN_BITS = 16


class Overhead(NamedTuple):
    """Bits of position information of a pruned network, over its pruned leaves.

    Attributes:
      bit_mask: one bit per weight, kept or not.
      csr: the fewest bits that hold a column for every nonzero, and a 32-bit pointer for every row
        and the end. A kernel is a matrix whose columns are its last axis.
      run_length: the run of zeros before every nonzero in `run_bits` bits, the compressed form of
        CSR and CSC that Parashar et al. (2017) use. A run that is too long for its field is split
        by stored zeros, whose run fields and 32-bit values count too. Zeros are taken to fall
        anywhere independently, so this is an expectation, and real masks are more clustered.
      run_bits: the width of a run field that costs least.
    """

    bit_mask: int
    csr: int
    run_length: float
    run_bits: int


def overhead_of(leaves: Iterable[LeafReport]) -> Overhead:
    """The overhead of the leaves that have dropped weights; a dense network has none."""
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
        overlong = leaf.sparsity ** (2**bits)  # a run of 2**bits zeros or more
        splits = overlong / (1 - overlong)  # stored zeros per nonzero: runs are geometric
        nonzero = leaf.size - leaf.n_zero
        total += nonzero * (bits + splits * (bits + value_bits))
    return total
