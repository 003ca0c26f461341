#!/usr/bin/env bash
# With a NaN in a bfloat16 or float8 array, `np.sort` returns it unsorted, and `np.median` returns
# a number instead of NaN.
#
# Versions: ml_dtypes 0.6.0, NumPy 2.4.6, Python 3.11, Linux x86-64.
#
# Expected: NumPy sorts NaN to the end and all other elements before it, as its page of `sort`
# says of floats; so it does for float32 and for float16. The median and the quantiles of an array
# with a NaN are NaN, so that a score that went wrong is noticed.
# Seen: the dtypes of ml_dtypes are sorted by `<`, which is false for NaN on either side, so a NaN
# separates parts that are sorted each for themselves. Of 1,000 magnitudes with 50 NaN among them,
# the result has descents and ends with a number. `np.partition`, `np.median` and `np.quantile`
# return a number that looks well, 0.62, and is neither NaN nor the 0.67 that is the median
# without the NaN: a wrong threshold for pruning, say. `np.argsort` has NaN among the smallest
# half, and `np.unique` returns some elements twice. JAX sorts the same arrays right.
#
# What helps: convert to float32 before, or use `jnp.sort`.
#
# Known in part: https://github.com/jax-ml/ml_dtypes/issues/346 and 206 say that `nan_to_num` and
# `assert_array_equal` don't see NaN in bfloat16, as NumPy does not support it in general. We
# found none on order, where ml_dtypes brings its own comparison.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
cat >"$folder/sort.py" <<'PYTHON'
import ml_dtypes
import numpy as np

numbers = np.abs(np.random.default_rng(1).standard_normal(1000))
numbers[::20] = np.nan
for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
    scores = numbers.astype(getattr(ml_dtypes, name, name))
    ordered = np.sort(scores).astype("float32")
    is_nan = np.isnan(ordered)
    descents = int(np.sum(np.diff(ordered[~is_nan]) < 0))
    low = np.sum(np.isnan(scores[np.argsort(scores)[:500]].astype("float32")))
    values, counts = np.unique(np.unique(scores).astype("float32"), return_counts=True)
    print(
        f"{name}: NaN last: {bool(is_nan[-50:].all())}, descents: {descents > 0},",
        f"median {float(np.median(scores)):.2f},",
        f"NaN among the smallest half: {bool(low)}, unique: {bool(counts.max() == 1)}",
    )
right = np.sort(numbers.astype("float32"))[:-50]
print(f"median of the 950 numbers: {np.median(right):.2f}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/sort.py")
printf '%s\n' "$seen"
[[ $seen == "float32: NaN last: True, descents: False, median nan, NaN among the smallest half: False, unique: True
float16: NaN last: True, descents: False, median nan, NaN among the smallest half: False, unique: True
bfloat16: NaN last: False, descents: True, median 0.62, NaN among the smallest half: True, unique: False
float8_e4m3fn: NaN last: False, descents: True, median 0.62, NaN among the smallest half: True, unique: False
float8_e5m2: NaN last: False, descents: True, median 0.62, NaN among the smallest half: True, unique: False
median of the 950 numbers: 0.67" ]]
echo 'as described'
