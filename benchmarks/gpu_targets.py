"""The GPUs that `gpu_programs` compiles for, described to XLA, and whether that is possible here.

XLA compiles for a GPU that the machine does not have if it is told its limits. It needs the CUDA
plugin of jax in the version of jaxlib, and NVIDIA's `libdevice` from a wheel or a toolkit. It needs
no driver.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from benchmarks.common import version_of

INSTALL = "pip install 'jaxprune[gpu-programs]'"
# Without tuning on a GPU, XLA must not choose kernels by their measured times.
OPTIONS = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}
PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")
_LIMIT_S = 120
_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {shared_per_block}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{description}"
"""


class Target(NamedTuple):
    """A GPU: its name in the results, and the text of XLA's `GpuTargetConfigProto`."""

    name: str
    config: str


H100 = Target(
    "h100",
    _CONFIG.format(
        shared_per_core=233_472,
        shared_per_block=232_448,
        cores=132,
        units=128,
        bandwidth=3_352_320_000_000,
        cache=52_428_800,
        clock=1.98,
        memory=84_978_434_048,
        major=9,
        description="NVIDIA H100 80GB HBM3",
    ),
)
A100 = Target(
    "a100",
    _CONFIG.format(
        shared_per_core=167_936,
        shared_per_block=166_912,
        cores=108,
        units=64,
        bandwidth=2_039_000_000_000,
        cache=41_943_040,
        clock=1.41,
        memory=84_978_434_048,
        major=8,
        description="NVIDIA A100-SXM4-80GB",
    ),
)
TARGETS = {target.name: target for target in (H100, A100)}


def devices(target: Target, count: int) -> Sequence[Any]:
    """Devices of a target, on one host per eight of them; the machine does not need to have any."""
    hosts, on_host = max(count // 8, 1), min(count, 8)
    topology = f"1x{hosts}x{on_host}"
    return topologies.get_topology_desc(
        platform="cuda", target_config=target.config, topology=topology
    ).devices


def target_named(name: str) -> Target:
    """The target of a name, or the description in a file; raises ValueError for anything else."""
    if name in TARGETS:
        return TARGETS[name]
    path = Path(name)
    try:
        return Target(path.stem, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(TARGETS)
        raise ValueError(
            f"gpu_programs: unknown target {name!r}: choose from {known}, or give a file with a "
            "GpuTargetConfigProto as text."
        ) from error


def why_not(target: Target) -> str:
    """Why programs can't be compiled for a target on this machine, in one line; "" if they can."""
    installed = {name: version for name in PLUGINS if (version := version_of(name))}
    if not installed:
        return f"gpu_programs: no CUDA plugin of jax is installed: {INSTALL}"
    jaxlib = version_of("jaxlib")
    if jaxlib not in installed.values():
        name, version = next(iter(installed.items()))
        return (
            f"gpu_programs: {name} is {version}, but jaxlib is {jaxlib}; both must have one "
            f"version: pip install '{name}=={jaxlib}'"
        )
    return _why_xla_refuses(target)


def _why_xla_refuses(target: Target) -> str:
    """Compiles one small program in a new process, because XLA aborts on some descriptions."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_targets"],
        input=target.config,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
    )
    if not result.returncode:
        return ""
    errors = [line for line in result.stderr.splitlines() if "Error: " in line]
    reason = errors[-1] if errors else f"its compiler ended with status {result.returncode}"
    return f"gpu_programs: XLA does not compile for target {target.name!r}: {reason[:300]}"


def _probe(config: str) -> None:
    """Compiles a reduction, which needs all parts of the compiler."""
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(devices(Target("", config), 1), ("d",))
    x = jax.ShapeDtypeStruct((4096,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    lowered = jax.jit(lambda x: jnp.exp(x).sum()).trace(x).lower(lowering_platforms=("cuda",))
    lowered.compile(compiler_options=OPTIONS)


if __name__ == "__main__":
    _probe(sys.stdin.read())
