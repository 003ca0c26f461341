#!/usr/bin/env bash
# Under strict promotion, `jax.nn.dot_product_attention` raises for bfloat16 and float16 inputs that
# all have one dtype.
#
# Versions: jax and jaxlib 0.12.0.1 and 0.10.2, NumPy 2.4.6, Python 3.12, Linux x86-64, CPU.
#
# Expected: strict promotion forbids mixing dtypes. Query, key and value have the same one here, so
# nothing is mixed, and the result has this dtype too.
# Seen: for float32 inputs it works. For bfloat16 and float16 it raises a TypePromotionError that
# names float32, which the caller did not pass: the function asks `jnp.promote_types` for the dtype
# of its logits. A network that keeps all of its dtypes apart with care can't be tested in this mode.
#
# What helps: `with jax.numpy_dtype_promotion("standard"):` around the call.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/attend.py" <<'PYTHON'
import jax
import jax.numpy as jnp

jax.config.update("jax_numpy_dtype_promotion", "strict")


def attended(dtype, promotion):
    query = jnp.ones((1, 4, 2, 8), dtype)
    with jax.numpy_dtype_promotion(promotion):
        try:
            return jax.nn.dot_product_attention(query, query, query).dtype.name
        except jax.dtypes.TypePromotionError as error:
            return str(error).split(")")[0]


for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
    print(attended(dtype, "strict"), "|", attended(dtype, "standard"))
PYTHON
expected="float32 | float32
Input dtypes ('bfloat16', 'float32' | bfloat16
Input dtypes ('float16', 'float32' | float16"
for version in 0.10.2 0.12.0.1; do
  python3.12 -m venv --clear "$folder/venv"
  "$folder/venv/bin/pip" install -q --disable-pip-version-check \
    "jax==$version" "jaxlib==$version" numpy==2.4.6
  seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/attend.py")
  printf '%s\n%s\n' "jax $version" "$seen"
  [[ $seen == "$expected" ]]
done
echo 'as described'
