"""Every file that jaxprune writes or reads.

    save_load.py    `save` and `load`: params to one compact file and back; `load` reads shards, too
    file_metadata.py   `load_metadata`: what a file holds beside the values
    host_arrays.py  params as NumPy arrays that a file can hold, in the order of the user
    leaf_files.py   that file, written and read one leaf at a time
    leaves.py       one leaf as tensors: dense, or the values that are not zero and their positions
    safetensors.py  the safetensors format: a header and the tensors that it describes
    shards.py       writes models in several safetensors files (shards), one tensor at a time
    shard_reader.py    reads them one tensor at a time, like `leaf_files.py` one file
    shard_index.py  which tensor is in which of these files, checked against the files
    dtypes.py       the dtypes of safetensors, also those of which several entries share a byte
    interchange.py  params for other programs: `save_safetensors`, SciPy's CSR, BCOO, BCSR
    npz.py          NumPy's `.npz`, written and read one array at a time
    orbax.py        orbax checkpoints, read a group of leaves at a time
    any_kind.py     opens any of these kinds of file, and writes any but checkpoints
    other_formats.py   files of other kinds: what they are, and what to do instead
    formats.py      the formats that can be written, and their suffixes
    footprint.py    how many bytes an array would take in each format; writes nothing
    stream.py       the bytes of a file in order, with zstd decompressed
    atomic.py       the only place where a file is put at its path, complete or not at all
    extras.py       imports a package that comes with an extra

The format of `save` is described in `docs/format.md`.
"""
