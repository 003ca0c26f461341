#!/usr/bin/env bash
# Implicit derivatives of optimistix and jaxopt are wrong for an optax chain that constrains params.
#
# Versions: optimistix 0.1.0, jaxopt 0.8.5, equinox 0.13.8, optax 0.2.8, jax and jaxlib 0.10.2,
# NumPy 2.4.6, Python 3.11, Linux x86-64, CPU.
#
# Expected: p that minimises (p - a)**2 and is not negative is max(a, 0). At a = -1 it is 0, and its
# derivative with respect to a is 0. Where a library can't know that a transformation constrains the
# params, it can see that the gradient at its solution, 2, is not 0, and say that the implicit
# derivative does not hold there.
# Seen: `optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())` finds 0 with both libraries.
# The derivative of `optimistix.minimise` is 1, without a warning: `ImplicitAdjoint`, its default,
# takes the solution for a root of the gradient. optimistix reports that the solve was successful.
# `jaxopt.OptaxSolver` gives 1 with `implicit_diff=True`, and 0 by default. At a = 1, where the
# constraint is not active, all derivatives are 1, as they should be.
# The same holds for every transformation that keeps params where their gradient is not zero:
# projections, frozen params, masks.
#
# What helps: `adjoint=optimistix.RecursiveCheckpointAdjoint()`, and `implicit_diff=False` for
# jaxopt, which differentiate the steps.
#
# Known: https://github.com/patrick-kidger/optimistix/issues/45 says that optimistix has no
# constraints for minimisers. Nothing says so where a chain of optax is passed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check \
  optimistix==0.1.0 jaxopt==0.8.5 equinox==0.13.8 optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 \
  numpy==2.4.6
cat >"$folder/derivative.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import jaxopt
import optax
import optimistix as optx

TX = optax.chain(optax.sgd(0.1), optax.keep_params_nonnegative())
START = jnp.array(0.5)


def loss(p, a):
    return (p - a) ** 2


def by_optimistix(a, **options):
    solver = optx.OptaxMinimiser(TX, rtol=1e-6, atol=1e-6)
    return optx.minimise(loss, solver, START, args=a, **options)


def by_jaxopt(a, **options):
    solver = jaxopt.OptaxSolver(opt=TX, fun=loss, maxiter=200, tol=1e-6, **options)
    return solver.run(START, a).params


def show(name, solve):
    (p, slope), (free, free_slope) = (jax.value_and_grad(solve)(a) for a in (-1.0, 1.0))
    print(f"{name}: {p:.3f}, slope {slope:.3f} | free: {free:.3f}, slope {free_slope:.3f}")


show("optimistix", lambda a: by_optimistix(a).value)
steps = optx.RecursiveCheckpointAdjoint()
show("optimistix, steps", lambda a: by_optimistix(a, adjoint=steps).value)
show("jaxopt", by_jaxopt)
show("jaxopt, implicit", lambda a: by_jaxopt(a, implicit_diff=True))
print("successful:", bool(by_optimistix(-1.0).result == optx.RESULTS.successful))
PYTHON
seen=$(JAX_PLATFORMS=cpu "$folder/venv/bin/python" -W ignore::DeprecationWarning "$folder/derivative.py")
printf '%s\n' "$seen"
[[ $seen == "optimistix: 0.000, slope 1.000 | free: 1.000, slope 1.000
optimistix, steps: 0.000, slope 0.000 | free: 1.000, slope 1.000
jaxopt: 0.000, slope 0.000 | free: 1.000, slope 1.000
jaxopt, implicit: 0.000, slope 1.000 | free: 1.000, slope 1.000
successful: True" ]]
echo 'as described'
