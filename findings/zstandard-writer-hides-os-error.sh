#!/usr/bin/env bash
# zstandard: a full disk while a file is compressed is reported as "Src size is incorrect".
#
# Versions: zstandard 0.25.0, Python 3.11, Linux x86-64.
#
# Expected: if the underlying file raises OSError (disk full, file-size limit) inside
# `with compressor.stream_writer(file, size=n) as out`, the caller sees that OSError.
# Seen: leaving the `with` block ends the zstd frame even after an exception. Fewer bytes than `size`
# have been written, so ending the frame raises ZstdError("... Src size is incorrect"), and this
# replaces the OSError, which survives only as `__context__`. A handler of OSError never runs.
#
# What helps: don't use the writer as a context manager; call `out.flush(zstandard.FLUSH_FRAME)`
# yourself after the last write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check zstandard==0.25.0
"$folder/venv/bin/python" - <<'PYTHON'
import errno
import io
import os
import sys

import zstandard


class Full(io.RawIOBase):
    """A file on a disk that is full after some bytes."""

    room = 1000

    def writable(self):
        return True

    def write(self, data):
        if self.room < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.zst")
        self.room -= len(data)
        return len(data)


data = os.urandom(2_000_000)
try:
    with zstandard.ZstdCompressor().stream_writer(Full(), size=2 * len(data), closefd=False) as out:
        for start in range(0, len(data), 100_000):
            out.write(data[start : start + 100_000])
except Exception as error:
    print(f"raised: {type(error).__name__}: {error}")
    print(f"context: {type(error.__context__).__name__}: {error.__context__}")
    hidden = isinstance(error, zstandard.ZstdError) and isinstance(error.__context__, OSError)
    sys.exit(not hidden)
sys.exit("nothing was raised")
PYTHON
echo 'as described'
