"""The Metal text under a compiler that knows address spaces, and under rules of Metal; planted errors are found."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sim.metal.run import MetalError, check

METAL = Path(__file__).resolve().parent.parent / "csrc" / "metal"
sys.path.insert(0, str(METAL))
import amalgamate  # noqa: E402

from sim.metal.gate import FORMATS  # noqa: E402

TILES = list(FORMATS.values())


def block_types() -> list[str]:
    """Return the struct of every format."""
    found = re.findall(r"^struct (\w+) \{\s*\n\s*enum : int \{ kGgmlType", amalgamate.kernel_text(), re.MULTILINE)
    assert len(found) > 20
    assert set(TILES) <= set(found)
    return found


BLOCKS = block_types()
LIBRARIES = (
    [{"LK_TILES": 1, "LK_WEIGHT": block} for block in TILES]
    + [{"LK_TILES": 0, "LK_WEIGHT": block} for block in BLOCKS]
    + [{"LK_TILES": 1, "LK_GATE": a, "LK_UP": b} for a, b in zip(["NoGate", *TILES], [*TILES, TILES[0]], strict=True)]
    + [{"LK_TILES": 0, "LK_GATE": a, "LK_UP": b} for a, b in (("NoGate", "Q4K"), ("F16", "Iq1M"), ("Iq2S", "Mxfp4"))]
)


@pytest.mark.parametrize("macros", LIBRARIES, ids=lambda m: "_".join(map(str, m.values())))
def test_every_library_is_metal(macros):
    check(amalgamate.library_text(**macros))


PLAIN = """#include <metal_stdlib>
using namespace metal;
namespace part {
struct Args { int n; float scale; };
template <class T> struct Pair { T a; T b; };
enum : int { kFour = 4 };
constant float kTable[4] = {1.0f, 2.0f, 3.0f, 4.0f};
static inline float pick(threadgroup const float* p, uint i) { return p[i & 31u]; }
static inline void swap(thread Pair<float>& p, thread float (&more)[2]) {
  const float a = p.a * more[0];
  p.a = p.b;
  p.b = a;
}
static inline float read(device const uint* p, float x) { return x * as_type<float>(p[0]); }
}  // namespace part
using namespace part;
kernel void twice(constant Args& args [[buffer(0)]], device const float* x [[buffer(1)]],
                  device float* y [[buffer(2)]], uint tid [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[tid] = x[tid] * kTable[tid & 3u] * args.scale;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Pair<float> p = {pick(tile, tid), 8.0f};
  float more[2] = {1.0f, 2.0f};
  swap(p, more);
  const half4 h = half4(1.0h, 2.0h, 3.0h, half(p.a));
  y[tid] = float(h.x) + simd_sum(p.b) + read(reinterpret_cast<device const uint*>(x), p.a);
}
"""

PLANTED = [
    # address spaces, by clang
    ("device_as_threadgroup", "pick(tile, tid)", "pick(x, tid)", "no matching function for call to 'pick'"),
    ("constant_as_threadgroup", "pick(tile, tid)", "pick(kTable, tid)", "no matching function for call to 'pick'"),
    ("thread_as_device", "device const uint*>(x)", "device const uint*>(more)", "_cast .* is not allowed"),
    ("write_to_constant", "y[tid] =", "kTable[0] =", "read-only|const"),
    ("array_in_device_reference", "thread float (&more)[2]", "device float (&more)[2]", "no matching function"),
    (
        "method_of_constant",
        "int n; float scale; };",
        "int n; float scale; float twice() const { return scale; } }; static inline float f(constant Args& a) { return "
        "a.twice(); }",
        "'this' argument|cannot initialize object parameter",
    ),
    # pointers and references without one
    ("bare_pointer", "threadgroup const float* p, uint i", "const float* p, uint i", "a pointer to float without"),
    ("bare_reference", "thread Pair<float>& p", "Pair<float>& p", "a reference to > without"),
    ("bare_array_reference", "thread float (&more)[2]", "float (&more)[2]", "a reference to float without"),
    ("bare_auto", "const float a = p.a", "auto& a = p.a", "a reference to auto without"),
    ("bare_cast", "<device const uint*>(x)", "<const uint*>(x)", "a pointer to uint without"),
    ("c_cast", "reinterpret_cast<device const uint*>(x)", "(device const uint*)x", "a C cast of a pointer"),
    # data of the program
    ("global_const", "constant float kTable", "const float kTable", "data of the program that is not constant"),
    ("global_constexpr", "enum : int { kFour = 4 };", "constexpr int kFour = 4;", "data of the program"),
    (
        "static_member",
        "struct Args { int n;",
        "struct Args { static constexpr int kN = 4; int n;",
        "data of the program",
    ),
    ("static_local", "float more[2]", "static float more[2]", "static data of a function"),
    # numbers
    ("double_literal", "8.0f}", "8.0}", "8.0 is a double, expected 8.0f"),
    ("double_exponent", "8.0f}", "2e1}", "2e1 is a double"),
    ("double_word", "const float a = p.a", "const double a = p.a", "Metal text has no double"),
    ("hexadecimal", "8.0f}", "0x1p1f}", "hexadecimal"),
    ("long_long", "int n;", "long long n;", "Metal has no long long"),
    ("long_long_literal", "tid & 3u]", "tid & 3ull]", "3ull is a long long"),
    # overloads and conversions: functions of numbers are no templates, and a list does not narrow
    ("max_of_two_types", "tile[tid] = x[tid]", "tile[max(tid, 0)] = x[tid]", "call to 'max' is ambiguous"),
    ("min_of_two_widths", "[tid & 3u]", "[min(tid, 3ul)]", "call to 'min' is ambiguous"),
    ("fma_of_half_and_float", "y[tid] = float(h.x)", "y[tid] = fma(p.a, h.y, p.b)", "call to 'fma' is ambiguous"),
    ("rotate_of_two_types", "[tid & 3u]", "[rotate(tid, 8ul) & 3u]", "call to 'rotate' is ambiguous"),
    ("narrowed_uint", "more[2] = {1.0f, 2.0f}", "more[2] = {1.0f, tid}", "cannot be narrowed"),
    ("narrowed_float", "Pair<float> p = {", "Pair<int> q = {args.scale, 1}; Pair<float> p = {", "narrow"),
    ("vector_as_another", "const half4 h =", "const uint4 u = int4(1, 2, 3, 4); const half4 h =", "cannot initialize"),
    # C++17 and what Metal lacks
    ("if_constexpr", "p.a = p.b;", "if constexpr (true) p.a = p.b;", "C\\+\\+17"),
    ("inline_variable", "constant float kTable", "inline constant float kTable", "C\\+\\+17"),
    ("structured_binding", "const float a = p.a", "const auto [u, v] = p; const float a = p.a", "C\\+\\+17"),
    ("static_assert", "enum : int { kFour = 4 };", "static_assert(sizeof(int) == 4);", "C\\+\\+17"),
    (
        "lambda",
        "const float a = p.a * more[0];",
        "const auto f = [](float b) { return b; }; const float a = f(p.a);",
        "lambda",
    ),
    ("std", "const float a = p.a", "const float a = std::fabs(p.a)", "Metal text has no std::"),
    ("header", "using namespace metal;", "#include <string.h>", "a header that is not of Metal"),
    ("goto", "p.a = p.b;", "goto end; end: p.a = p.b;", "Metal text has no goto"),
    ("noexcept", "read(device const uint* p, float x)", "read(device const uint* p, float x) noexcept", "no noexcept"),
    ("register", "const float a = p.a", "register float a = p.a", "no register|C\\+\\+17"),
    ("word_as_name", "const float a = p.a", "const uint half = 1u; const float a = p.a", "half is a type of Metal"),
    ("recursion", "return p[i & 31u];", "return i > 31u ? pick(p, i - 32u) : p[i];", "pick calls itself"),
    # kernels
    (
        "unknown_attribute",
        "[[thread_index_in_threadgroup]]",
        "[[thread_number]]",
        r"unknown attribute \[\[thread_number\]\]",
    ),
    ("missing_attribute", " [[thread_index_in_threadgroup]]", "", "the parameter uint tid has no attribute"),
    ("doubled_buffer", "[[buffer(2)]]", "[[buffer(1)]]", r"buffer 1 \(y\): x has the same number"),
    ("buffer_31", "[[buffer(2)]]", "[[buffer(31)]]", "expected a number from 0 to 30"),
    ("buffer_by_value", "constant Args& args", "constant Args args", "is passed by value"),
    (
        "buffer_without_space",
        "device float* y",
        "threadgroup float* y",
        "expected the address space device or constant",
    ),
    ("threadgroup_in_block", "  threadgroup float tile[64];", "  { threadgroup float a[4]; }", "inside of a block"),
    (
        "threadgroup_in_function",
        "const float a = p.a",
        "threadgroup float t[4]; const float a = p.a",
        "outside of a kernel",
    ),
    (
        "kernel_in_namespace",
        "enum : int { kFour",
        "kernel void f() {} enum : int { kFour",
        "a kernel inside of a namespace",
    ),
]


def test_the_text_without_errors_passes():
    check(PLAIN)


@pytest.mark.parametrize(("old", "new", "found"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_planted_error_is_found(old, new, found):
    assert PLAIN.count(old) == 1
    with pytest.raises(MetalError, match=found) as raised:
        check(PLAIN.replace(old, new))
    at = PLAIN[: PLAIN.index(old)].count("\n") + 1
    lines = {int(line) for line in re.findall(r"program_source:(\d+)", str(raised.value))}
    assert lines & set(range(at, at + 12)), f"{raised.value}\nis not about line {at}"
