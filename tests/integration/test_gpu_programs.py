"""`python -m benchmarks gpu_programs`: what it reads, its limits, and what it refuses to do."""

import jax
import pytest

pytest.importorskip("rich")
pytest.importorskip("tqdm")
pytest.importorskip("sklearn")

from benchmarks import (
    __main__ as cli,
    bench_gpu_programs,
    gpu_kinds,
    gpu_limits,
    gpu_reading,
    gpu_targets,
    hlo_kernels,
)
from benchmarks.common import Check

TEXT = """HloModule m, is_scheduled=true
%fused (param_0: f32[8,4], param_1: s32[]) -> f32[4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %row = f32[1,4]{1,0} dynamic-slice(%param_0, %param_1, %param_1), dynamic_slice_sizes={1,4}
  ROOT %flat = f32[4]{0} bitcast(%row)
}
%sum (a: s32[], b: s32[]) -> s32[] {
  ROOT %add = s32[] add(%a, %b)
}
%pass (p: (f32[8,4], s32[7])) -> (f32[8,4], s32[7]) {
  %p = (f32[8,4]{1,0}, /*index=1*/s32[7]{0}) parameter(0)
  %w = f32[8,4]{1,0} get-tuple-element(%p), index=0
  %counts = (s32[7]{0}, pred[8,4]{1,0}) fusion(%w, %w), kind=kInput, calls=%other
  %local = s32[7]{0} get-tuple-element(%counts), index=0
  %start = s32[7]{0} all-reduce-start(%local), to_apply=%sum
  %done = s32[7]{0} all-reduce-done(%start)
  ROOT %t = (f32[8,4]{1,0}, s32[7]{0}) tuple(%w, %done)
}
%trip (q: (f32[8,4], s32[7])) -> (f32[8,4], s32[7]) {
  %q = (f32[8,4]{1,0}, s32[7]{0}) parameter(0)
  %zero = s32[7]{0} copy(%constant_1)
  ROOT %search = (f32[8,4]{1,0}, s32[7]{0}) while(%q), condition=%cond, body=%pass
}
%commands (w.1: f32[8,4]) -> f32[4] {
  %w.1 = f32[8,4]{1,0} parameter(0)
  %i = s32[] constant(0)
  ROOT %slice = f32[4]{0} fusion(%w.1, %i), kind=kLoop, calls=%fused
}
ENTRY %main (w.2: f32[8,4]) -> f32[4] {
  %w.2 = f32[8,4]{1,0} parameter(0), sharding={replicated}
  %loop = (f32[8,4]{1,0}, s32[7]{0}) while(%init), condition=%cond, body=%trip
  ROOT %graph = f32[4]{0} call(%w.2), to_apply=%commands
}
"""


def test_kernels_and_bytes_are_those_of_the_loop_in_which_they_are():
    entry, trip, search = hlo_kernels.regions(TEXT)
    assert [r.depth for r in (entry, trip, search)] == [0, 1, 2]
    assert [k.name for k in entry.kernels] == ["slice"]  # in a `call`
    assert [k.name for k in trip.kernels] == ["zero"]
    assert [k.name for k in search.kernels] == ["counts"]
    assert (entry.n_read, entry.n_written) == (16 + 4, 16)  # one row of the weights, and its index
    assert (search.n_read, search.n_written) == (128, 28 + 32)  # read twice by one kernel: once
    assert search.collectives == [("all-reduce", 28)]
    assert not entry.collectives


def test_the_scratch_memory_of_a_library_is_told_apart():
    product = '(f32[4,4]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="cublas"'
    text = TEXT.replace("s32[7]{0} copy(%constant_1)", product)
    assert hlo_kernels.workspace(hlo_kernels.regions(text)) == 4096
    assert hlo_kernels.workspace(hlo_kernels.regions(TEXT)) == 0


@pytest.mark.parametrize(
    "text, size",
    (("f32[8,4]{1,0}", 128), ("(pred[3]{0}, /*index=1*/bf16[2,2]{1,0}, token[])", 11))
    + (("u4[5]{0}", 3), ("f8e4m3fn[6]{0}", 6), ("s64[]", 8), ("c64[2]", 16)),
)
def test_bytes_of_types(text, size):
    assert hlo_kernels.n_bytes(text) == size


def test_a_step_is_read_next_to_its_optimizer():
    where = gpu_kinds.place(jax.devices()[:1], gpu_kinds.AUTO)
    program = gpu_kinds.step("unstructured", where, "float32")
    hlo = jax.jit(program.function).lower(*program.arguments).compile().as_text()
    row = gpu_reading.numbers(gpu_reading.Compiled(hlo, 10**6, 1.0, 2.0), program)
    assert (row["weights"], row["temp_per_weight"]) == (10**7, 0.1)
    assert row["searches"] >= 1
    assert min(row[f"{part}_kernels"] for part in ("entry", "fire", "pass")) > 0
    assert row["pass_read_per_weight"] >= 4  # the weights at least


def test_the_state_of_a_step_is_sharded_like_its_params():
    where = gpu_kinds.place(jax.devices()[:8], gpu_kinds.AUTO)
    program = gpu_kinds.step("bit masks", where, "bfloat16")
    params, state, grads = program.arguments
    assert params == grads
    assert program.n_weights == (8192 * 28_672 + 4096 * 4096) // 8
    specs = {name: p.sharding.spec for name, p in params.items()}
    for part in (state[0][0].mu, state[0][0].nu, state[1].masks):
        assert {name: x.sharding.spec for name, x in part.items()} == specs
    assert state[1].prune_step.sharding.is_fully_replicated


# Limits


def row_of(**numbers):
    row = {"case": "step", "kind": "unstructured", "devices": 1, "axes": "Auto", "leaves": 1}
    row |= {"dtype": "float32", "item_bytes": 4, "target": "h100", "quiet_extra": 3, "copies": 0}
    row |= {"temp_per_weight": 0.01, "pass_read_per_weight": 5, "pass_written_per_weight": 0.05}
    return row | {"pass_kernels": 6, "pass_collectives": 1, "gathered": 0} | numbers


def test_each_limit_can_be_missed():
    assert all(check.ok for check in gpu_limits.checks_of(row_of()))
    for what in ("quiet_extra", "copies", "temp_per_weight", "pass_read_per_weight"):
        (missed,) = [c for c in gpu_limits.checks_of(row_of(**{what: 9.5})) if not c.ok]
        assert missed.target == f"{what}: unstructured, 1 Auto, float32, h100"
    many = [c.target for c in gpu_limits.checks_of(row_of(devices=8, gathered=8)) if not c.ok]
    assert many == ["gathered: unstructured, 8 Auto, float32, h100"]


def test_the_worst_program_of_each_limit_is_reported():
    rows = [row_of(), row_of(kind="inner", quiet_extra=4), {"error": "", "kind": "jnp.sort"}]
    (quiet,) = [c for c in gpu_limits.worst_checks(rows) if c.target.startswith("quiet_extra")]
    assert (quiet.measured, quiet.target) == (4, "quiet_extra: inner, 1 Auto, float32, h100")


def test_known_misses_may_only_get_better():
    known = {"a": 4.0}
    for measured, line in {4.0: [], 3.0: [], 5.0: ["a: 5, was 4 of 1"]}.items():
        assert gpu_limits.differences([Check("a", 1, measured)], known) == line
    assert gpu_limits.differences([Check("a", 1, 1)], known) == ["a: 1 is within 1 now"]
    assert gpu_limits.differences([Check("b", 1, 2)], known) == ["b: 2 is more than 1"]
    assert gpu_limits.differences([Check("b", 1, 1)], known) == []


@pytest.mark.recipes
def test_programs_are_within_their_limits_but_for_known_misses():
    if reason := gpu_targets.why_not(gpu_targets.H100):
        pytest.skip(reason)
    rows = [row for some in gpu_limits.tested() for row in some]
    assert not [row for row in rows if "error" in row]
    checks, known = gpu_limits.tested_checks(rows), gpu_limits.known_misses()
    assert gpu_limits.differences(checks, known) == []
    assert set(known) <= {check.target for check in checks}


# Bad input


@pytest.fixture
def one_line(monkeypatch, capsys, tmp_path):
    """Runs `gpu_programs`, which must end with status 1 and one line; returns the line."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(bench_gpu_programs, "_chosen", dict(bench_gpu_programs._chosen))

    def run(*options):
        assert cli.main(["gpu_programs", "--quick", "--out", str(tmp_path), *options]) == 1
        output = capsys.readouterr()
        assert not output.out
        assert not list(tmp_path.glob("*.json"))
        (line,) = output.err.splitlines()
        return line

    return run


def installed(**versions):
    by_name = {name.replace("_", "-"): version for name, version in versions.items()}
    return by_name.get


def test_without_a_plugin(one_line, monkeypatch):
    monkeypatch.setattr(gpu_targets, "version_of", installed(jaxlib="0.10.2"))
    line = one_line()
    assert line.startswith("gpu_programs: no CUDA plugin of jax is installed: pip install")


def test_a_plugin_of_another_version(one_line, monkeypatch):
    versions = installed(jaxlib="0.10.2", jax_cuda12_plugin="0.9.0")
    monkeypatch.setattr(gpu_targets, "version_of", versions)
    line = one_line()
    assert "jax-cuda12-plugin is 0.9.0, but jaxlib is 0.10.2" in line
    assert "pip install 'jax-cuda12-plugin==0.10.2'" in line


def test_an_unknown_target(one_line):
    line = one_line("--target", "h1000")
    assert "unknown target 'h1000': choose from h100, a100, or give a file" in line


def test_jax_that_may_start_a_gpu(one_line, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "set JAX_PLATFORMS=cpu" in one_line()


def test_a_target_of_another_benchmark(capsys):
    with pytest.raises(SystemExit):
        cli.main(["select", "--target", "h100"])
    assert "--target is for gpu_programs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, reason",
    (("hello", "Failed to parse GpuTargetConfigProto"), ("", "ended with status"))
    + ((gpu_targets.H100.config.replace("major: 9", "major: 2"), "UNIMPLEMENTED"),),
    ids=("no description", "an empty one", "a chip of 2010"),
)
def test_a_target_that_xla_does_not_know(one_line, tmp_path, config, reason):
    if problem := gpu_targets.why_not(gpu_targets.H100):
        pytest.skip(problem)
    file = tmp_path / "chip.txt"
    file.write_text(config)
    line = one_line("--target", str(file))
    assert line.startswith("gpu_programs: XLA does not compile for target 'chip': ")
    assert reason in line
