"""What results were computed with: versions, device, commit. No names of folders or machines."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import jaxprune

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def describe() -> dict[str, Any]:
    """What a reader needs to reproduce the results; `commit` is None outside of a checkout."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "machine": platform.machine(),
        "n_cpus": n_cpus(),
        "versions": {
            "python": platform.python_version(),
            "jaxprune": jaxprune.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "commit": git_commit(),
    }


def decisive(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of `describe()` that can change the bits of a result.

    The number of CPUs can: XLA divides matrix products among them, which changes the order of sums.
    """
    names = ("device", "machine", "n_cpus")
    return {name: environment[name] for name in names} | environment["versions"]


def n_cpus() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of the checkout that jaxprune is imported from, with `+changes` if files differ.

    None if there is no git or no commit, and for an installed copy, because the repository around a
    virtual environment belongs to another project.
    """
    root = Path(jaxprune.__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if not top or not commit or Path(top).resolve() != root:
        return None
    return commit + ("+changes" if _git(root, "status", "--porcelain") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
