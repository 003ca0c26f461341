"""Which formats can be written, and which one the name of a file asks for.

Nothing is imported here: the command line lists the formats in its help without loading JAX.
"""

from pathlib import Path

FORMATS = ("jaxprune", "safetensors", "npz", "csr")
SHARDS = "shards"  # a folder of safetensors files, which only shards are written to
_SUFFIXES = {".zst": "jaxprune", ".safetensors": "safetensors", ".npz": "npz"}


def format_for(out: Path, format_name: str | None = None, *, from_shards: bool = False) -> str:
    """The format to write: `format_name` if it is given, otherwise the one of the file's suffix.

    What is read from shards is written as shards, unless the name of a file or a format is given.

    Raises:
      ValueError: the suffix belongs to no format, or `format_name` is unknown.

    Example:
      >>> format_for(Path("model.safetensors.zst")), format_for(Path("model.npz"))
      ('jaxprune', 'npz')
      >>> format_for(Path("Llama-3.1"), from_shards=True)
      'shards'
    """
    if from_shards and format_name in (None, "safetensors") and out.suffix not in _SUFFIXES:
        return SHARDS
    name = format_name or _SUFFIXES.get(out.suffix)
    if name not in FORMATS:
        problem = (
            f"unknown --format {format_name!r}"
            if format_name
            else f"the suffix {out.suffix!r} does not say which format to write"
        )
        raise ValueError(
            f"{out}: {problem}. Name the file .safetensors.zst (jaxprune), .safetensors or .npz, "
            f"or pass --format {'|'.join(FORMATS)}."
        )
    return name
