"""Every instruction that the PTX interpreter knows, against Python's integers and fractions."""

from __future__ import annotations

import math
import random
import struct

import numpy as np
import pytest

from ptx_arithmetic import APPROXIMATE, OPERATIONS, Row, Value, wrap
from sim.ptx import Global, Program, Region
from sim.ptx.build import EMITTERS

LANES = 96
CODES = {"f32": "f", "f64": "d", "pred": "I", "n32": "I"}
CODES |= {f"{s}{b}": c for b, pair in ((16, "hH"), (32, "iI"), (64, "qQ")) for s, c in zip("su", pair, strict=True)}
EDGES = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)
FLOAT_EDGES = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    2.5,
    -3.5,
    1e-45,
    -1e-40,
    3.4e38,
    math.inf,
    -math.inf,
    math.nan,
    65519.9,
    2.0**31,
)


def values(kind: str, chance: random.Random) -> list[Value]:
    """Edges and chance of one type."""
    if kind == "pred":
        return [chance.randrange(2) for _ in range(LANES)]
    if kind == "n32":
        return [chance.randrange(70) for _ in range(LANES)]
    if kind[0] == "f":
        found = [chance.choice(FLOAT_EDGES) for _ in range(LANES // 3)]
        found += [chance.uniform(-4, 4) * 2.0 ** chance.randrange(-6, 7) for _ in range(LANES // 3)]
        found += [chance.uniform(-1, 1) * 2.0 ** chance.choice((-140, -70, 20, 33, 60)) for _ in range(LANES // 3)]
        chance.shuffle(found)
        return [struct.unpack("<f", struct.pack("<f", v))[0] if kind == "f32" else v for v in found]
    numbers = [chance.choice(EDGES) for _ in range(LANES // 2)] + [chance.getrandbits(64) for _ in range(LANES // 2)]
    chance.shuffle(numbers)
    return [wrap(v, kind) for v in numbers]


def register(kind: str) -> str:
    return {"pred": "pred", "f32": "f32", "f64": "f64", "n32": "b32"}.get(kind, f"b{kind[1:]}")


def text_of(row: Row) -> str:
    """A kernel that runs the instruction on one element of each input."""
    instruction, inputs, output, _ = row
    lines = [
        f".reg .{register(output)} %d;",
        ".reg .b32 %t, %u;",
        ".reg .b64 %base, %at, %wide;",
        "mov.u32 %t, %tid.x;",
    ]
    for k, kind in enumerate((*inputs, output)):
        name = "abc"[k] if k < len(inputs) else "d"
        width = struct.calcsize(CODES[kind])
        load = [
            f"ld.param.u64 %base, [args+{8 * k}];",
            f"mul.wide.u32 %wide, %t, {width};",
            "add.s64 %at, %base, %wide;",
        ]
        if name == "d":
            lines.append(instruction)
            store = "selp.u32 %u, 1, 0, %d;" if kind == "pred" else ""
            source = "%u" if kind == "pred" else "%d"
            stored = "u32" if kind == "pred" else register(kind)
            lines += [*load, store, f"st.global.{stored} [%at], {source};"]
        else:
            lines += [f".reg .{register(kind)} %{name};", *load]
            if kind == "pred":
                lines += ["ld.global.u32 %u, [%at];", f"setp.ne.u32 %{name}, %u, 0;"]
            else:
                lines.append(f"ld.global.{register(kind)} %{name}, [%at];")
    body = "\n".join(line for line in lines if line)
    size = 8 * (len(inputs) + 1)
    head = ".version 7.8\n.target sm_80\n.address_size 64\n"
    return f"{head}.visible .entry probe(.param .align 8 .b8 args[{size}])\n{{\n{body}\nret;\n}}\n"


def run(row: Row, inputs: list[list[Value]]) -> list[Value]:
    """The results of all lanes."""
    output = row[2]
    regions = []
    for k, (kind, column) in enumerate(zip(row[1], inputs, strict=True)):
        regions.append(
            Region(0x10000 * (k + 1), np.frombuffer(struct.pack(f"<{LANES}{CODES[kind]}", *column), np.uint8))
        )
    size = LANES * struct.calcsize(CODES[output])
    result = Region(0x10000 * (len(inputs) + 1), np.zeros(size, np.uint8), np.zeros(size, bool))
    args = struct.pack(f"<{len(inputs) + 1}Q", *(r.address for r in [*regions, result]))
    Program(text_of(row)).launch("probe", (1, 1, 1), LANES, 0, args, Global([*regions, result]))
    return list(struct.unpack(f"<{LANES}{CODES[output]}", result.data.tobytes()))


def close(found: float, wanted: float, relative: float) -> bool:
    if math.isnan(wanted) or math.isinf(wanted) or wanted == 0:
        return math.isnan(found) if math.isnan(wanted) else found == wanted
    return abs(found - wanted) <= relative * abs(wanted)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row[0].split()[0])
def test_operation(row: Row) -> None:
    chance = random.Random(row[0])
    inputs = [values(kind, chance) for kind in row[1]]
    found = run(row, inputs)
    relative = 2.0**-20 if row in APPROXIMATE else 0.0
    for lane, result in enumerate(found):
        sources = [column[lane] for column in inputs]
        wanted = row[3](*sources)
        if row[2][0] == "f":
            assert close(result, wanted, relative), (sources, result, wanted)
            if wanted == 0:
                assert math.copysign(1, result) == math.copysign(1, wanted), (sources, result, wanted)
        else:
            wanted = int(wanted) if row[2] == "pred" else wrap(wanted, row[2])
            assert result == wanted, (sources, result, wanted)


# What no single lane shows: tests/test_ptx_interpreter.py has these.
ELSEWHERE = {"ld", "ldu", "st", "cp", "cvta", "shfl", "vote", "redux", "activemask", "mma", "ldmatrix", "trap"}
HINTS = {"membar", "fence", "prefetch"}


def test_no_operation_without_a_test() -> None:
    tested = {word for row in OPERATIONS for line in row[0].split("\n") for word in line.split() if "." in word}
    assert {word.split(".")[0] for word in tested} | ELSEWHERE | HINTS >= set(EMITTERS)
