#!/usr/bin/env bash
# safetensors.torch.load cannot read back what safetensors.torch.save wrote: F8_E8M0 and F4.
#
# Versions: safetensors 0.8.0, torch 2.13.0 (CPU), NumPy 2.4.6, Python 3.11.
#
# Expected: `load(save(tensors)) == tensors` for every dtype that `save` accepts. Block scales of MX
# formats are float8_e8m0fnu, and their weights float4_e2m1fn_x2.
# Seen: `save` writes both, and `load_file` reads both, but `load`, which takes bytes, has a table of
# its own without them: "KeyError: 'F8_E8M0'" and "KeyError: 'F4'". float8_e4m3fn works.
#
# What helps: write the bytes to a file, and use load_file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  safetensors==0.8.0 torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save

raw = torch.arange(120, 124, dtype=torch.uint8)
outcomes = {}
for name in ("float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn_x2"):
    data = save({"x": raw.view(getattr(torch, name))})
    path = Path(sys.argv[1]) / f"{name}.safetensors"
    path.write_bytes(data)
    assert torch.equal(load_file(path)["x"].view(torch.uint8), raw)
    try:
        outcomes[name] = str(torch.equal(load(data)["x"].view(torch.uint8), raw))
    except KeyError as error:
        outcomes[name] = f"KeyError: {error}"
    print(f"{name}: load_file reads it back; load: {outcomes[name]}")
as_described = list(outcomes.values()) == ["True", "KeyError: 'F8_E8M0'", "KeyError: 'F4'"]
sys.exit(not as_described)
PYTHON
echo 'as described'
