#!/usr/bin/env bash
# `prune.remove` of PyTorch changes what a model with tied weights computes.
#
# Versions: torch 2.13.0 (CPU), NumPy 2.4.6, Python 3.11, Linux x86-64.
#
# Expected: `torch.nn.utils.prune.remove` makes a pruning permanent. The tutorial and the
# docstring say that the parameter stays pruned and that the pruning is not undone; the outputs of
# the model are the same before and after it, so that what was evaluated is what is exported.
# Seen: if the weight is shared, as that of an embedding and of the output layer of a language
# model, pruning one of the two layers masks the weight in this layer only. They share the
# original values still, and the embedding stays dense. `remove` writes the masked values into the
# shared tensor: now the embedding is pruned as well, and the perplexity that was measured before
# is that of another model. With two masks, one for each layer, the layers get the product of both
# masks: two times 50 % at random become 75 % in both. No call warns.
#
# What helps: before pruning, untie the layers, or prune in both with one mask
# (`prune.custom_from_mask`).
#
# Known: we found no report about `remove`, and the documentation does not mention shared weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat >"$folder/remove.py" <<'PYTHON'
import torch
from torch import nn
from torch.nn.utils import prune


class Model(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 1000, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        else:
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone())

    def forward(self, tokens):
        return self.head(self.norm(self.embed(tokens)))


def zeros(layer):
    return f"{float((layer.weight == 0).float().mean()):.0%}"


def report(when, model, outputs):
    tokens = torch.arange(1000)
    with torch.no_grad():
        outputs.append(model(tokens))
    same = bool(torch.allclose(outputs[0], outputs[-1], atol=1e-4))
    shares = f"embed {zeros(model.embed)} zeros, head {zeros(model.head)}"
    print(f"  {when}: {shares}; same outputs: {same}")


for tied in (False, True):
    for names in (("head",), ("embed", "head")):
        torch.manual_seed(0)
        model, outputs = Model(tied), []
        layers = [getattr(model, name) for name in names]
        for layer in layers:
            prune.random_unstructured(layer, "weight", amount=0.5)
        print(f"{'tied' if tied else 'not tied'}, pruned:", *names)
        report("before remove", model, outputs)
        for layer in layers:
            prune.remove(layer, "weight")
        report("after remove", model, outputs)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/remove.py" 2>"$folder/errors") || cat "$folder/errors"
printf '%s\n' "$seen"
[[ $seen == "not tied, pruned: head
  before remove: embed 0% zeros, head 50%; same outputs: True
  after remove: embed 0% zeros, head 50%; same outputs: True
not tied, pruned: embed head
  before remove: embed 50% zeros, head 50%; same outputs: True
  after remove: embed 50% zeros, head 50%; same outputs: True
tied, pruned: head
  before remove: embed 0% zeros, head 50%; same outputs: True
  after remove: embed 50% zeros, head 50%; same outputs: False
tied, pruned: embed head
  before remove: embed 50% zeros, head 50%; same outputs: True
  after remove: embed 75% zeros, head 75%; same outputs: False" ]]
echo 'as described'
