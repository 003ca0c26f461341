#!/usr/bin/env bash
# mypy takes `__module__ = "..."` in the body of a NamedTuple for a field, and tells only the users.
#
# Versions: mypy 2.4.1, Python 3.11, Linux x86-64.
#
# A library that moves its classes between private modules sets `__module__` to its public name, so
# that pickles and `help` show that one. At run time this is no field: `_fields` is ("x", "y").
#
# Expected: no error in code that uses the class, or one that names the line in the library.
# Seen: the class has three fields for mypy, of which the first is `__module__`. Every call with
# positional arguments and every unpacking is an error in the code of the users. The line itself is
# refused only where the library is checked; in an installed package mypy is silent about it.
# pyright does not count it.
#
# What helps: `Point.__module__ = "shapes"` behind the class.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check mypy==2.4.1
mkdir "$folder/code"
cat >"$folder/code/shapes.py" <<'PYTHON'
from typing import NamedTuple


class Point(NamedTuple):
    __module__ = "shapes"

    x: int
    y: int


class Moved(NamedTuple):
    x: int
    y: int


Moved.__module__ = "shapes"
PYTHON
cat >"$folder/code/user.py" <<'PYTHON'
from shapes import Moved, Point

a, b = Moved(1, 2)
c, d = Point(1, 2)
print(Point._fields, c + d)
PYTHON
cd "$folder/code"
seen=$("$folder/venv/bin/python" user.py)
seen+=$'\n'$("$folder/venv/bin/mypy" --follow-imports=silent user.py || true)
printf '%s\n' "$seen"
[[ $seen == "('x', 'y') 3
user.py:4: error: Missing positional argument \"y\" in call to \"Point\"  [call-arg]
user.py:4: error: Too many values to unpack (2 expected, 3 provided)  [misc]
Found 2 errors in 1 file (checked 1 source file)" ]]
echo 'as described'
