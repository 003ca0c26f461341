"""Models in shards with an index, made and read by hand, and what can be wrong with them."""

import json
import shutil

from safetensors_files import random_tensor, read_file, write_file

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
EXTRAS = {
    "config.json": b'{"layers": 2}',
    "tokenizer.json": b"[]",
    "1_Pooling/config.json": b"{}",
    "README.md": b"# model",
}


def n_bytes(tensors):
    return sum(len(data) for _, _, data in tensors.values())


def write_model(folder, parts, metadata=None, extras=EXTRAS, **about):
    """A folder of shards, `{file: tensors}`, with an index and other files."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in parts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_file(folder / file, tensors, metadata)
    total = sum(map(n_bytes, parts.values()))
    file_of = {name: file for file, tensors in parts.items() for name in tensors}
    index = {"metadata": {"total_size": total} | about, "weight_map": file_of}
    (folder / INDEX).write_text(json.dumps(index))
    for name, data in extras.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def read_model(folder):
    """The tensors of each shard, and what the index says; the inverse of `write_model`."""
    index = json.loads((folder / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    parts = {file: read_file(folder / file)[0] for file in files}
    assert {name: file for file in files for name in parts[file]} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(map(n_bytes, parts.values()))
    return parts, index


def two_shards():
    return {
        FIRST: {
            "b.weight": random_tensor(0, "BF16", (8, 6)),
            "a.weight": random_tensor(1, "F32", (4, 8)),
            "a.bias": random_tensor(2, "F32", (8,)),
        },
        SECOND: {
            "c.weight": random_tensor(3, "F32", (16, 8)),
            "c.step": random_tensor(4, "I64", ()),
        },
    }


def new_model(folder):
    """A model of `two_shards` in a folder of its own below this one."""
    write_model(folder / "model", two_shards(), {"format": "pt"})
    return folder / "model"


def joined(parts):
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


# What can be wrong with an index or its shards


def edited(change):
    """Changes the index of a model."""

    def apply(model):
        index = json.loads((model / INDEX).read_text())
        change(index)
        (model / INDEX).write_text(json.dumps(index))

    return apply


def moved(name, file):
    return edited(lambda index: index["weight_map"].update({name: file}))


def total(size):
    return edited(lambda index: index["metadata"].update(total_size=size))


def foreign_shard(model):
    write_file(model / SECOND, {"x": random_tensor(0, "F32", (2,))})


def one_more_tensor(model):
    tensors = two_shards()[SECOND]
    write_file(
        model / SECOND,
        tensors | {"a.bias": random_tensor(9, "F32", (8,))},
    )


def twice_in_the_index(model):
    text = (model / INDEX).read_text()
    entry = '"c.step": "model-00002-of-00002.safetensors"'
    assert entry in text
    (model / INDEX).write_text(text.replace(entry, f"{entry}, {entry}"))


def truncated(model):
    path = model / SECOND
    path.write_bytes(path.read_bytes()[:-8])


def replaced(text):
    return lambda model: (model / INDEX).write_text(text)


WRONG = {
    "a missing shard": (
        lambda model: (model / SECOND).unlink(),
        (f"{INDEX}:", f"1 of 2 shards is missing: {SECOND}", "Download"),
    ),
    "a folder instead of a shard": (
        lambda model: ((model / SECOND).unlink(), (model / SECOND).mkdir()),
        (f"{INDEX}:", SECOND),
    ),
    "a shard of another model": (foreign_shard, (f"{INDEX}:", SECOND, "c.step", "another model")),
    "a tensor in two shards": (one_more_tensor, (f"{INDEX}:", SECOND, "a.bias", "two shards")),
    "a tensor that no shard holds": (
        moved("d.weight", SECOND),
        (f"{INDEX}:", SECOND, "does not hold d.weight"),
    ),
    "a shard that the index does not name": (
        lambda model: shutil.copy(model / SECOND, model / "model-00003-of-00003.safetensors"),
        (f"{INDEX}:", "model-00003-of-00003.safetensors", "another model"),
    ),
    "a wrong size": (total(5), (f"{INDEX}:", "5 bytes", "'total_size'")),
    "a size that is no number": (total("x"), (f"{INDEX}:", "'x' bytes", "'total_size'")),
    "a name twice": (twice_in_the_index, (f"{INDEX}:", "a name occurs twice")),
    "a path outside": (moved("c.step", "../x.safetensors"), ("c.step", "outside the folder")),
    "a hidden path outside": (
        moved("c.step", "a/../../x.safetensors"),
        ("c.step", "outside the folder"),
    ),
    "an absolute path": (moved("c.step", "/x.safetensors"), ("c.step", "outside the folder")),
    "a path of Windows": (moved("c.step", "C:\\x.safetensors"), ("c.step", "outside the folder")),
    "a file that is no name": (moved("c.step", 7), ("c.step", "7", "Correct the index")),
    "a name with escape codes": (moved("\x1b[2J", SECOND), (r"\x1b[2J", "printable")),
    "a file with escape codes": (moved("c.step", "\x1b[2J"), ("c.step", r"\x1b[2J")),
    "pickled shards": (moved("c.step", "x.bin"), ("c.step", "x.bin", "safetensors")),
    "a shard that is cut off": (truncated, (SECOND, "damaged")),
    "no index": (replaced("[]"), (f"{INDEX}:", "not an object")),
    "no JSON": (replaced("{"), (f"{INDEX}:", "not valid JSON")),
    "deep JSON": (replaced("[" * 100_000), (f"{INDEX}:", "not valid JSON")),
    "no map": (replaced('{"weight_map": []}'), (f"{INDEX}:", "'weight_map'")),
    "an empty map": (replaced('{"weight_map": {}}'), (f"{INDEX}:", "'weight_map'")),
    "metadata that are a list": (
        edited(lambda index: index.update(metadata=[1])),
        (f"{INDEX}:", "'metadata'"),
    ),
    "two indices": (
        lambda model: shutil.copy(model / INDEX, model / "fp16.safetensors.index.json"),
        ("fp16.safetensors.index.json", INDEX, "one of them"),
    ),
}
