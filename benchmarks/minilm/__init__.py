"""A real sentence encoder, for pruning with calibration text; `bench_minilm` measures it.

- `weights`: finds and reads the weights and the tokenizer.
- `encoder`: the model in Flax NNX.
- `reference`: the same model in NumPy, slow and obvious.
- `texts`: sentences that are installed with Python and its packages.
"""
