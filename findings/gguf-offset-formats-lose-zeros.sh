#!/usr/bin/env bash
# Quantised to GGUF's Q4_1 or Q5_1, a pruned tensor is dense; Q4_0 and Q5_0 keep every zero, half of
# them as -0.0.
#
# Versions: gguf 0.19.0 (the Python package of llama.cpp), NumPy 2.4.6, Python 3.12.
#
# Expected: a weight that is exactly zero is zero after `quantize` and `dequantize`, whatever the
# format, as in Q8_0, BF16 and MXFP4. Formats with more bits keep at least as many zeros.
# Seen: Q4_1 and Q5_1 store a block of 32 weights as an offset and multiples of a step, both in
# float16, and zero is rarely one of these values. A tensor with 50 % zeros has 0.1 or 0.2 %
# afterwards, and one with 90 % zeros has 19 %, in blocks whose smallest value is zero. Nothing says
# so. In Q4_0 and Q5_0 the step is negative in half of the
# blocks, which makes their zeros -0.0: they compare equal to zero, but their bits are not zero.
#
# What helps: choose a format without an offset (Q4_0, Q5_0, Q8_0, MXFP4) for a pruned model, and
# count the zeros of the dequantised weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cat >"$folder/zeros.py" <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType, quants

rng = np.random.default_rng(0)
for sparsity in (0.5, 0.9):
    w = rng.standard_normal((256, 1024)).astype(np.float32)
    w[rng.random(w.shape) < sparsity] = 0
    for name in ("BF16", "Q8_0", "MXFP4", "Q5_0", "Q5_1", "Q4_0", "Q4_1"):
        kind = GGMLQuantizationType[name]
        back = quants.dequantize(quants.quantize(w, kind), kind)
        kept = np.mean(back[w == 0] == 0)
        negative = np.mean(np.signbit(back[w == 0]) & (back[w == 0] == 0))
        ways = f"{kept:.0%} of them kept, {negative:.0%} as -0.0"
        print(f"{sparsity:.0%} zeros, {name}: {ways}; {np.mean(back == 0):.1%} zeros in all")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/zeros.py")
printf '%s\n' "$seen"
[[ $seen == "50% zeros, BF16: 100% of them kept, 0% as -0.0; 50.0% zeros in all
50% zeros, Q8_0: 100% of them kept, 0% as -0.0; 50.3% zeros in all
50% zeros, MXFP4: 100% of them kept, 0% as -0.0; 53.7% zeros in all
50% zeros, Q5_0: 100% of them kept, 50% as -0.0; 52.5% zeros in all
50% zeros, Q5_1: 0% of them kept, 0% as -0.0; 0.1% zeros in all
50% zeros, Q4_0: 100% of them kept, 50% as -0.0; 55.1% zeros in all
50% zeros, Q4_1: 0% of them kept, 0% as -0.0; 0.2% zeros in all
90% zeros, BF16: 100% of them kept, 0% as -0.0; 89.9% zeros in all
90% zeros, Q8_0: 100% of them kept, 0% as -0.0; 89.9% zeros in all
90% zeros, MXFP4: 100% of them kept, 0% as -0.0; 90.3% zeros in all
90% zeros, Q5_0: 100% of them kept, 52% as -0.0; 90.2% zeros in all
90% zeros, Q5_1: 21% of them kept, 0% as -0.0; 18.6% zeros in all
90% zeros, Q4_0: 100% of them kept, 52% as -0.0; 90.5% zeros in all
90% zeros, Q4_1: 21% of them kept, 0% as -0.0; 19.0% zeros in all" ]]
echo 'as described'
