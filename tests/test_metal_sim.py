"""The simulator of Metal text itself: small kernels that are right, and kernels with one fault each that it tells."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sim.metal.run import Library, MetalError, simulator_path

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
LANES = "uint tid [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]"
Array = np.ndarray[Any, Any]


def kernel(body: str, parameters: str = "", name: str = "f") -> Library:
    """One kernel with two buffers, x of floats and y of floats unless `parameters` says something else."""
    parameters = parameters or "device const float* x [[buffer(1)]], device float* y [[buffer(2)]]"
    return Library(f"{HEAD}kernel void {name}({parameters}, {LANES}) {{\n{body}\n}}\n")


def ran(library: Library, x: Array, like: Array, threads: int = 32, groups: Sequence[int] = (1, 1, 1)) -> Array:
    """What the kernel f writes, the same for every order of its threads."""
    results = []
    for seed in (0, 1, 2):
        y = np.zeros_like(like)
        library.launch("f", b"", [x, y], groups, threads, seed)
        results.append(y)
    assert all(np.array_equal(results[0].view(np.uint8), r.view(np.uint8)) for r in results)
    return results[0]


def failure(library: Library, n: int = 64, threads: int = 64) -> str:
    """The error of a kernel, the same whatever the order of its threads but for the numbers of threads."""
    x, y = np.zeros(n, np.float32), np.zeros(n, np.float32)
    texts = []
    for seed in range(3):
        with pytest.raises(MetalError) as raised:
            library.launch("f", b"", [x, y], (1, 1, 1), threads, seed)
        texts.append(str(raised.value))
    return texts[0]


# ---- kernels that are right ----


def test_positions_and_sizes():
    names = {
        "threadgroup_position_in_grid": "uint3",
        "threads_per_threadgroup": "uint3",
        "thread_position_in_grid": "uint3",
        "threadgroups_per_grid": "uint3",
        "thread_index_in_threadgroup": "uint",
        "thread_index_in_simdgroup": "uint",
        "simdgroup_index_in_threadgroup": "ushort",
        "simdgroups_per_threadgroup": "uint",
        "threads_per_simdgroup": "uint",
    }
    parameters = ", ".join(f"{kind} p{i} [[{name}]]" for i, (name, kind) in enumerate(names.items()))
    values = ["p0.x", "p0.y", "p0.z", "p1.x", "p2.x", "p3.x", "p3.z", "p4", "p5", "p6", "p7", "p8"]
    stores = " ".join(f"y[{len(values)}u * at + {i}u] = {v};" for i, v in enumerate(values))
    at = "const uint at = ((p0.z * p3.y + p0.y) * p3.x + p0.x) * p1.x + p4;"
    library = Library(f"{HEAD}kernel void f(device uint* y [[buffer(1)]], {parameters}) {{ {at} {stores} }}")
    groups, threads = (3, 2, 2), 64
    y = np.zeros((12 * threads, len(values)), np.uint32)
    library.launch("f", b"", [y], groups, threads, 7)
    i = np.arange(12 * threads)
    group, t = i // threads, i % threads
    gx, gy, gz = group % 3, group // 3 % 2, group // 6
    fixed = [threads, gx * threads + t, 3, 2, t, t % 32, t // 32, 2, 32]
    expected = np.stack([np.broadcast_to(v, i.shape) for v in [gx, gy, gz, *fixed]], axis=1)
    assert np.array_equal(y, expected)


def test_arguments_and_buffers_by_number():
    library = Library(
        f"{HEAD}struct Args {{ int n; float scale; }};\n"
        "kernel void f(constant Args& args [[buffer(0)]], device float* y [[buffer(5)]],"
        " constant float* x [[buffer(3)]],"
        " uint tid [[thread_index_in_threadgroup]]) { if (int(tid) < args.n) y[tid] = x[tid] * args.scale; }"
    )
    assert library.kernels() == ["f"]
    assert library.n_buffers("f") == 3
    assert library.threadgroup_bytes("f") == 0
    x, y = np.arange(40, dtype=np.float32), np.zeros(40, np.float32)
    library.launch("f", struct.pack("if", 40, 3.0), {3: x, 5: y}, (1, 1, 1), 64)
    assert np.array_equal(y, 3 * x)
    with pytest.raises(MetalError, match=r"^launch f: buffer 0 \(args\) is not bound$"):
        library.launch("f", b"", {3: x, 5: y}, (1, 1, 1), 64)
    with pytest.raises(MetalError, match=r"^launch f: buffer 0 \(args\) has 4 bytes, expected 8$"):
        library.launch("f", bytes(4), {3: x, 5: y}, (1, 1, 1), 64)
    odd = np.zeros(41 * 4, np.uint8)[1:161].view()
    with pytest.raises(MetalError, match=r"^launch f: buffer 5 \(y\) is not at a multiple of 4 bytes$"):
        library.launch("f", struct.pack("if", 40, 3.0), {3: x, 5: odd}, (1, 1, 1), 64)


def test_functions_of_a_simd_group():
    body = """
      device float* out = y + 16u * tid;
      const float v = x[tid];
      out[0] = simd_sum(v);
      out[1] = simd_max(v);
      out[2] = simd_min(v);
      out[3] = simd_shuffle(v, 5);
      out[4] = simd_shuffle_xor(v, 3);
      out[5] = simd_broadcast(v, 31);
      out[6] = simd_prefix_inclusive_sum(v);
      out[7] = simd_prefix_exclusive_sum(v);
      out[8] = simd_broadcast_first(v);
      out[9] = simd_any(v > 30.0f) ? 1.0f : 0.0f;
      out[10] = simd_all(v >= 0.0f) ? 1.0f : 0.0f;
      out[11] = float(popcount(uint(simd_vote::vote_t(simd_ballot(v < 10.0f)))));
      const float2 both = simd_sum(float2(v, 1.0f));
      out[12] = both.x;
      out[13] = both.y;
      out[14] = float(simd_sum(half(1.0h)));
      out[15] = float(lane);
    """
    x = np.random.default_rng(1).permutation(64).astype(np.float32)
    y = ran(kernel(body), x, np.zeros((64, 16), np.float32), threads=64)
    for group in (0, 1):
        v, out = x[32 * group :][:32], y[32 * group :][:32]
        whole = [v.sum(), v.max(), v.min(), v[5], None, v[31], None, None, v[0], (v > 30).any(), (v >= 0).all()]
        for i, value in enumerate([*whole, (v < 10).sum(), v.sum(), 32, 32]):
            if value is not None:
                assert np.all(out[:, i] == value)
        assert np.array_equal(out[:, 4], v[np.arange(32) ^ 3])
        assert np.array_equal(out[:, 6], np.cumsum(v))
        assert np.array_equal(out[:, 7], np.cumsum(v) - v)
        assert np.array_equal(out[:, 15], np.arange(32))


MATRICES = """
  threadgroup half tile[128];
  for (uint i = lane; i < 128u; i += 32u) tile[i] = half(x[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_half8x8 a;
  simdgroup_half8x8 b;
  simdgroup_load(a, tile, 8);
  simdgroup_load(b, tile + 64, 8, ulong2(0), true);
  simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(0.5f);
  simdgroup_multiply_accumulate(c, a, b, c);
  simdgroup_store(c, y, 10, ulong2(1, 2));
  simdgroup_float8x8 f;
  simdgroup_load(f, x + 128);
  simdgroup_float8x8 d = simdgroup_float8x8(2.0f);
  simdgroup_multiply(d, f, d);
  simdgroup_store(d, y + 120);
"""


def test_simdgroup_matrices():
    x = np.random.default_rng(2).integers(-50, 50, 192).astype(np.float32)
    y = ran(kernel(MATRICES), x, np.full(184, 7, np.float32))
    a, b, f = x.reshape(3, 8, 8)
    out = np.zeros(120, np.float32)
    out.reshape(12, 10)[2:10, 1:9] = a @ b.T + 0.5
    assert np.array_equal(y[:120], out)
    assert np.array_equal(y[120:].reshape(8, 8), 2 * f)


def test_halfs_round_after_every_operation():
    body = """
      if (tid != 0u) return;
      const half a = half(x[0]);
      const half b = half(x[1]);
      const half c = half(x[2]);
      y[0] = float(a * b + c);
      y[1] = float(fma(a, b, c));
      y[2] = float((a + b) + c);
      const half4 v = half4(a, b, c, a) * half4(b) - half4(c);
      y[3] = float(v.x);
      y[4] = float(a / b);
      y[5] = float(as_type<half2>((5u & 0x000f000fu) | 0x64006400u).x);
    """
    library = kernel(body)
    random = np.random.default_rng(3)
    fused = False
    for _ in range(30):
        x = random.normal(size=3).astype(np.float16).astype(np.float32)
        y = ran(library, x, np.zeros(6, np.float32))
        a, b, c = x.astype(np.float16)
        assert y[0] == np.float32(np.float16(a * b) + c)
        assert y[1] == np.float32(np.float16(np.float64(a) * np.float64(b) + np.float64(c)))
        assert y[2] == np.float32(np.float16(a + b) + c)
        assert y[3] == np.float32(np.float16(a * b) - c)
        assert y[4] == np.float32(a / b)
        assert y[5] == 1029
        fused = fused or y[0] != y[1]
    assert fused


def test_integers_and_bits():
    body = """
      if (tid != 0u) return;
      const uint a = as_type<uint>(x[0]);
      device uint* out = reinterpret_cast<device uint*>(y);
      out[0] = extract_bits(a, 4u, 9u);
      out[1] = insert_bits(a, 5u, 8u, 4u);
      out[2] = rotate(a, 7u);
      out[3] = popcount(a);
      out[4] = clz(a) + 100u * ctz(a);
      out[5] = mulhi(a, a);
      out[6] = uint(extract_bits(int(a), 4u, 9u));
      out[7] = clamp(a, 5u, 9u) + min(a, 3u) + max(2u, 1u) + abs(-4);
      out[8] = select(1u, 2u, a > 3u);
      const uint4 v = (uint4(a) >> uint4(0, 8, 16, 24)) & 255u;
      out[9] = v.x | v.y << 8 | v.z << 16 | v.w << 24;
      out[10] = as_type<uint>(ushort2(ushort(a), ushort(a >> 16)));
      out[11] = uint(rint(2.5f)) + 10u * uint(round(2.5f)) + 100u * uint(floor(2.9f));
      out[12] = reverse_bits(a);
    """
    a = 0x9ABCD1F0
    y = ran(kernel(body), np.array([a], np.uint32).view(np.float32), np.zeros(13, np.uint32))
    signed = (a >> 4) & 511
    signed -= 512 if signed > 255 else 0
    expected = [
        *((a >> 4) & 511, (a & ~0xF00) | 0x500, ((a << 7) | (a >> 25)) & 0xFFFFFFFF, a.bit_count()),
        *(
            0 + 100 * 4,
            (a * a) >> 32,
            signed & 0xFFFFFFFF,
            9 + 3 + 2 + 4,
            2,
            a,
            a,
            2 + 30 + 200,
            int(f"{a:032b}"[::-1], 2),
        ),
    ]
    assert list(y) == expected


# ---- faults ----

GOOD = "  threadgroup float tile[64];\n  tile[tid] = x[tid];\n  {barrier}\n  y[tid] = tile[tid ^ 1u] + tile[tid ^ 32u];"


def test_a_barrier_makes_it_right():
    x = np.arange(64, dtype=np.float32)
    body = GOOD.format(barrier="threadgroup_barrier(mem_flags::mem_threadgroup);")
    y = ran(kernel(body), x, x, threads=64)
    assert np.array_equal(y, x[np.arange(64) ^ 1] + x[np.arange(64) ^ 32])


@pytest.mark.parametrize(
    ("barrier", "found"),
    [
        ("", r"thread \d+: (race: reads|reads shared memory that no thread has written).* at program_source:7$"),
        ("threadgroup_barrier(mem_flags::mem_none);", r"race: reads byte .* at program_source:7$"),
        ("threadgroup_barrier(mem_flags::mem_device);", r"race: reads byte .* at program_source:7$"),
        ("simdgroup_barrier(mem_flags::mem_threadgroup);", r"(race|no thread has written).* at program_source:7$"),
        (
            "if (tid == 40u) return; threadgroup_barrier(mem_flags::mem_threadgroup);",
            r"divergent barrier: .*program_source:6",
        ),
        (
            "if (tid < 32u) threadgroup_barrier(mem_flags::mem_threadgroup);\n"
            "else threadgroup_barrier(mem_flags::mem_threadgroup);",
            r"divergent barrier: .*waits in barrier at program_source:6, .*program_source:7",
        ),
        (
            "threadgroup_barrier(tid < 32u ? mem_flags::mem_threadgroup : mem_flags::mem_none);",
            r"a barrier with different memories",
        ),
        ("if (lane != 3u) return; y[0] = simd_sum(1.0f);", r"deadlock: .*simd_sum at program_source:6"),
        ("y[0] = simd_shuffle(1.0f, 32);", r"simd_shuffle: lane 32, expected 0 .. 31 at program_source:6$"),
    ],
    ids=[
        "none",
        "no_memory",
        "device_memory",
        "simd_group",
        "one_leaves",
        "two_places",
        "two_kinds",
        "one_lane",
        "lane_32",
    ],
)
def test_threads_that_do_not_meet(barrier, found):
    assert re.search(found, failure(kernel(GOOD.format(barrier=barrier))))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y[tid + 1u] = 0.0f;", "writes 4 bytes at byte 256 of an allocation of 256 at program_source:4"),
        (
            "y[tid] = (x - 1)[tid];",
            "reads 4 bytes at 0x[0-9a-f]+, which is in no allocation|at byte -|of an allocation",
        ),
        ("y[0] = x[tid];", "race: writes byte .* of global memory that thread .* wrote"),
        (
            "threadgroup float t[4];\nif (tid < 4u) t[tid] = 0.0f;\nif (tid == 0u) y[0] = t[4];",
            "outside of its shared array",
        ),
        ("threadgroup float t[64];\nif (tid == 0u) y[0] = t[1];", "reads shared memory that no thread has written"),
        (
            "const float4 v = reinterpret_cast<device const float4*>(x + 1)[0];\ny[tid] = v.x + v.y + v.z + v.w;",
            "uses 0x[0-9a-f]+, expected a multiple of 16 at program_source:4",
        ),
        (
            "threadgroup float t[64];\nt[tid] = 0.0f;\nthreadgroup_barrier(mem_flags::mem_threadgroup);\n"
            "const float4 v = reinterpret_cast<threadgroup const float4*>(t)[lane / 8];\ny[tid] = v.x + v.y;",
            "uses 0x[0-9a-f]+, expected a multiple of 16 at program_source:7",
        ),
        (
            "simdgroup_float8x8 m;\nsimdgroup_load(m, x + lane);\nsimdgroup_store(m, y);",
            "simdgroup_load: lane .* has another place than lane 0 at program_source:5",
        ),
        (
            "simdgroup_float8x8 m;\nsimdgroup_load(m, x + 8);\nsimdgroup_store(m, y);",
            "of an allocation of 256 at program_source:5",
        ),
    ],
    ids=[
        "past_the_end",
        "before",
        "same_byte",
        "array",
        "unwritten",
        "unaligned",
        "unaligned_array",
        "matrix_place",
        "matrix_outside",
    ],
)
def test_memory(body, found):
    assert re.search(found, failure(kernel(body)))


def test_threadgroup_memory_has_an_end():
    library = kernel("  threadgroup float t[8192];\n  t[tid] = x[tid];\n  y[tid] = t[tid];")
    assert library.threadgroup_bytes("f") == 32768
    x = np.arange(64, dtype=np.float32)
    assert np.array_equal(ran(library, x, x, threads=64), x)
    library = kernel("  threadgroup float t[8192];\n  threadgroup half u[2];\n  t[tid] = x[tid];\n  y[tid] = t[tid];")
    with pytest.raises(MetalError, match=r"^kernel f: 32784 bytes of threadgroup memory, the limit is 32768$"):
        library.threadgroup_bytes("f")
    with pytest.raises(MetalError, match=r"^kernel f: 32784 bytes of threadgroup memory, the limit is 32768$"):
        library.launch("f", b"", [x, x], (1, 1, 1), 64)


def test_launches_that_are_refused():
    library = Library(
        HEAD + "kernel void f(device float* y [[buffer(1)]]) [[max_total_threads_per_threadgroup(64)]] {}\n"
    )
    y = np.zeros(4, np.float32)
    with pytest.raises(MetalError, match=r"^launch f: 96 threads, its text allows 64$"):
        library.launch("f", b"", [y], (1, 1, 1), 96)
    with pytest.raises(MetalError, match=r"launch: 48 threads in a block, expected a multiple of 32 up to 1024"):
        library.launch("f", b"", [y], (1, 1, 1), 48)
    with pytest.raises(MetalError, match=r"^kernel: the library has no kernel g$"):
        library.launch("g", b"", [y], (1, 1, 1), 32)
    with pytest.raises(MetalError, match=r"^kernel: the library has no kernel g$"):
        library.n_buffers("g")


def test_errors_of_the_compiler_name_lines():
    with pytest.raises(MetalError, match=r"^matvec.metal:12:\d+: error: use of undeclared identifier 'bug'"):
        Library(f'{HEAD}#line 11 "matvec.metal"\nstatic inline float g(float a) {{\n  return a + bug;\n}}\n')
    with pytest.raises(MetalError, match=r"^matvec.metal:11:1: error: the parameter uint i has no attribute\n$"):
        Library(f'{HEAD}#line 11 "matvec.metal"\nkernel void f(uint i) {{}}\n')


def test_without_a_compiler_there_is_a_clear_error():
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom sim.metal.run import Library, check\n"
    program += "for f in (Library, check):\n  try: f('')\n  except RuntimeError as e: print(e)"
    environment = {**os.environ, "PATH": "/nonexistent", "LUTKERN_SIM_DIR": str(simulator_path().parents[1])}
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert found.stderr == ""
    missing = "no clang++ of version 15 or newer (Debian: clang-16)"
    assert found.stdout.splitlines() == [f"compile: {missing}", f"check: {missing}"]


def test_processes_share_libraries(tmp_path):
    program = "import sys; sys.path.insert(0, sys.argv[1])\nfrom sim.metal.run import Library\n"
    program += f"print(Library({HEAD!r} + 'kernel void f(device float* y [[buffer(1)]]) {{}}').kernels())"
    environment = {**os.environ, "LUTKERN_SIM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert [p.communicate(timeout=120)[0] for p in together] == ["['f']\n"] * 3
    made = sorted(p.name for p in (tmp_path / "cache").iterdir())
    assert [name.split("_")[0] + name[name.rindex(".") :] for name in made] == ["shim.pch", "text.so"]
