#!/usr/bin/env bash
# haliax 1.3, its newest release, names no version of jax, and imports with jax 0.4 only.
#
# Versions: haliax 1.3; jax 0.10.2 with equinox 0.13.8, and jax 0.4.35 with equinox 0.11.10;
# Python 3.11, Linux x86-64, CPU.
#
# Expected: `pip install haliax jax` gives versions that work together, or says that there are none.
# Seen: the package requires equinox, jaxtyping and jmp, of which none limits jax from above, so pip
# installs any newer jax. `import haliax` then ends with "ImportError: cannot import name
# 'BuiltInKeyEntry' from 'jax._src.tree_util'", a private name (also with 0.5.3, 0.6.2, 0.7.2, 0.8.0
# and 0.9.2). With jax 0.4.35 the import works.
#
# What helps: pin jax==0.4.35 and equinox<0.12 beside haliax 1.3 in an environment of their own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
install() { # install FOLDER PACKAGES...
  python3.11 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install -q --disable-pip-version-check "${@:2}"
}
try() { JAX_PLATFORMS=cpu "$folder/$1/bin/python" -c 'import haliax; print("imports")' 2>&1 | tail -n 1; }
install new haliax==1.3 jax==0.10.2 jaxlib==0.10.2 equinox==0.13.8
install old haliax==1.3 jax==0.4.35 jaxlib==0.4.35 equinox==0.11.10
required=$("$folder/new/bin/python" -c '
import importlib.metadata, re
needs = importlib.metadata.requires("haliax")
print(sorted({re.match(r"[\w-]+", n)[0] for n in needs if "extra" not in n}))')
new=$(try new) old=$(try old)
printf 'requires: %s\njax 0.10.2: %s\njax 0.4.35: %s\n' "$required" "$new" "$old"
[[ $required == "['equinox', 'jaxtyping', 'jmp']" ]]
[[ $new == *"cannot import name 'BuiltInKeyEntry' from 'jax._src.tree_util'"* ]]
[[ $old == imports ]]
echo 'as described'
