"""What nvcc made of every CUDA kernel, run by the PTX interpreter, against the same kernel in the simulator.

The simulator runs the source as C++, the interpreter runs the PTX. They agree byte for byte; only expf and tanhf may
differ. Needs nvcc (or LUTKERN_PTX_DIR) and liblutkern_sim.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cuda_launch import FORMATS, Bytes, Case, Maker, Simulator, kernels, sim_folder, tile_formats
from sim.ptx import Counts, Global, Module, Program, PtxError, Region
from sim.ptx.toolkit import find_nvcc, kernels_ptx

IN_CI = os.environ.get("CI") == "true"
MISSING = ""
if sim_folder() is None:
    MISSING = "no liblutkern_sim.so: build the target sim and set LUTKERN_SIM_DIR"
elif find_nvcc() is None and "LUTKERN_PTX_DIR" not in os.environ:
    MISSING = "no nvcc: see CONTRIBUTING.md"
pytestmark = pytest.mark.skipif(bool(MISSING) and not IN_CI, reason=MISSING)

# The oldest that is shipped, and the first with matrix units for m16n8k32.
ARCHITECTURES = ("75", "80")


@functools.cache
def simulator() -> Simulator:
    folder = sim_folder()
    assert folder is not None, MISSING
    return Simulator(folder)


@functools.cache
def program(arch: str) -> Program:
    return Program(kernels_ptx(arch))


def cases(name: str) -> Iterator[Case]:
    """Small launches of a kernel that reach all of it: rows and columns that fill no tile, several tokens, odd ids."""
    make = Maker(simulator(), seed=sum(map(ord, name)))
    fmt = next((f for f in tile_formats() if name.endswith(f"_{f}")), "")
    verb = name.removesuffix(f"_{fmt}") if fmt else name
    if verb in ("to_tiles", "to_blocks"):
        yield repack(make, name, fmt)
    elif verb == "quantize":
        yield make.quantize(name, 3, 300, "f32")
        yield make.quantize(name, 2, 64, "f16")
        yield make.quantize(name, 2, 64, "bf16")
    elif verb == "dequantize":
        for dtype in ("f32", "f16", "bf16"):
            yield make.dequantize(name, fmt, True, 35, 300 if dtype == "f32" else 256, dtype)
    elif verb in ("matvec", "matmul_small", "matmul_large"):
        for rows, cols, tokens in {"matvec": [(70, 768, 1)], "matmul_small": [(40, 512, 5)]}.get(verb, [(40, 512, 19)]):
            yield make.product(name, fmt, True, rows, cols, tokens)
    elif verb.startswith("moe"):
        yield from moe_cases(make, name, verb, fmt)
    else:
        yield from any_cases(make, name)


def repack(make: Maker, name: str, fmt: str) -> Case:
    """Two experts of 35 rows of two blocks."""
    blocks = make.dequantize("", fmt, False, 35, 512, "f32").arrays["w"]
    size = 2 * 2 * 2 * simulator().tile_bytes(fmt)
    if name.startswith("to_tiles"):
        return make.repack_case(name, fmt, blocks, 2, 35, size)
    return make.repack_case(name, fmt, make.repack(fmt, blocks, 2, 35, size), 2, 35, blocks.size)


def moe_cases(make: Maker, name: str, verb: str, fmt: str) -> Iterator[Case]:
    batch = "batch" in verb
    ids = [[1, 0], [1, 2], [-1, 1], [1, 0]] if batch else [[2, 0]]
    shape = (256, 320) if "up" in verb else (288, 256)
    if verb.endswith("any"):
        yield make.moe(name, ("q4_k", "iq2_s", "f16"), False, (256, 40), [[2, 0], [1, -1]], "silu", partial=True)
        yield make.moe(name, (None, "iq1_m", "q8_0"), False, (256, 64), [[2, 3]], "relu2")
        yield make.moe(name, ("iq3_s", "iq1_s", "iq2_xxs"), True, (256, 40), [[2, 0]], "gelu", exact=True)
        return
    if verb.endswith("mixed"):
        for k, gate in enumerate(tile_formats()):
            up = tile_formats()[(k + 3) % len(tile_formats())]
            yield make.moe(name, (gate, up, "iq2_s"), True, (256, 40), ids, "relu2", partial=True)
        return
    if "up" in verb:
        yield make.moe(name, (fmt, fmt, "iq2_s"), True, shape, ids, "silu", partial=True)
        yield make.moe(name, (None, fmt, "iq2_s"), True, shape, ids, "relu2")
    else:
        yield make.moe(name, ("iq2_s", "iq2_s", fmt), True, shape, ids, partial=True)


def any_cases(make: Maker, name: str) -> Iterator[Case]:
    for k, fmt in enumerate(FORMATS):
        for tiles in (False, True) if fmt in tile_formats() else (False,):
            if name == "dequantize_any":
                yield make.dequantize(name, fmt, tiles, 3, 256, ("f32", "f16", "bf16")[k % 3])
            else:
                yield make.product(name, fmt, tiles, 6, 256, 2, exact=k % 4 == 0, dtype=("f32", "bf16", "f16")[k % 3])


def interpret(module: Program, case: Case) -> Counts:
    """Run the PTX; what it writes goes into the arrays of the case."""
    args = bytes(case.args)  # type: ignore[arg-type]
    *grid, threads, shared = simulator().plan(case.kernel, args)
    regions = {}
    for name, array in case.arrays.items():
        written = None if case.written[name] else np.zeros(array.size, bool)
        regions[name] = Region(array.ctypes.data, array, written, name)
    counts = module.launch(case.kernel, (grid[0], grid[1], grid[2]), threads, shared, args, Global(regions.values()))
    for name, region in regions.items():
        if not case.written[name]:
            case.arrays[name][:] = region.data
    return counts


def different(case: Case, name: str, wanted: Bytes, found: Bytes) -> str:
    """Where two results differ; of approximate cases: by more than expf and tanhf may."""
    if np.array_equal(wanted, found):
        return ""
    if case.approximate and name.endswith("q"):
        apart = np.abs(wanted.view(np.int8).astype(int) - found.view(np.int8))
        ok = apart.max() <= 1 and np.count_nonzero(apart) <= 0.01 * apart.size
        return "" if ok else f"{name}: codes differ by {apart.max()}"
    a, b = wanted.view(np.uint32), found.view(np.uint32)
    x, y = a.view(np.float32), b.view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        near = np.abs(x - y) <= 1e-5 * np.abs(x).max() if case.approximate else np.zeros(x.shape, bool)
    same = (a == b) | (np.isnan(x) & np.isnan(y)) | near
    if same.all():
        return ""
    at = int(np.argmin(same))
    return f"{name}: {np.count_nonzero(~same)} of {same.size} words differ, first {at}: {a[at]:#x}, by PTX {b[at]:#x}"


def compare(module: Program, case: Case) -> str:
    """Run both; empty, or what differs."""
    simulator().run(case)
    wanted = case.outputs()
    case.clear()
    assert any((data != 0xA5).any() for data in wanted.values()), f"{case}: the simulator wrote nothing"
    interpret(module, case)
    return next(filter(None, (different(case, n, wanted[n], found) for n, found in case.outputs().items())), "")


@pytest.mark.parametrize("name", kernels())
def test_ptx_equals_the_simulator(name: str) -> None:
    old, new = (program(arch) for arch in ARCHITECTURES)
    for case in cases(name):
        assert not compare(new, case), str(case)
        if text_of(new, name) != text_of(old, name):
            case.clear()
            assert not compare(old, case), f"{case}, compute_{ARCHITECTURES[0]}"


def text_of(module: Program, name: str) -> str:
    """The PTX of a kernel without what is only a hint."""
    return module.text_of(name).replace(".L1::no_allocate", "")


def test_every_kernel_is_in_the_ptx() -> None:
    for arch in ARCHITECTURES:
        assert set(program(arch).kernels) == set(kernels())


# ---- the whole path: what the host launches ----


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The first launch of each kernel in a run of the public API over the fake driver."""
    folder, driver = tmp_path_factory.mktemp("trace"), sim_folder()
    assert driver is not None, MISSING
    environment = os.environ | {"LUTKERN_LIBCUDA": str(driver / "libcuda_fake.so"), "LUTKERN_SIM_TRACE": str(folder)}
    script = Path(__file__).with_name("cuda_session.py")
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        found.setdefault(json.loads((path / "launch.json").read_text())["kernel"], path)
    yield found
    shutil.rmtree(folder)


def test_the_session_launches_every_kernel(traces: dict[str, Path]) -> None:
    assert set(traces) == set(kernels())


@pytest.mark.parametrize("name", kernels())
def test_ptx_replays_the_session(name: str, traces: dict[str, Path]) -> None:
    folder = traces[name]
    launch = json.loads((folder / "launch.json").read_text())
    regions = []
    for k, allocation in enumerate(launch["allocations"]):
        before = np.fromfile(folder / f"before_{k}.bin", np.uint8)
        assert len(before) == allocation["bytes"]
        regions.append(Region(allocation["address"], before, name=f"allocation {k}"))
    args = (folder / "args.bin").read_bytes()
    program("80").launch(name, tuple(launch["grid"]), launch["block"][0], launch["shared"], args, Global(regions))
    changed = False
    for k, region in enumerate(regions):
        before, after = (np.fromfile(folder / f"{when}_{k}.bin", np.uint8) for when in ("before", "after"))
        changed |= not np.array_equal(before, after)
        different = np.flatnonzero(after != region.data)
        assert not len(different), f"{len(different)} of {len(after)} bytes of allocation {k}, first {different[0]}"
    assert changed, "the launch changed nothing"


# ---- a change of the PTX is seen ----

MUTATIONS: dict[str, tuple[str, Callable[[re.Match[str]], str]]] = {
    "another shift": (r"(shr\.u32 \t%r\d+, %r\d+, )(\d+);", lambda m: f"{m[1]}{int(m[2]) ^ 1};"),
    "another mask": (r"(and\.b32 +\t%r\d+, %r\d+, )(\d+);", lambda m: f"{m[1]}{int(m[2]) >> 1};"),
    "another address": (r"(ld\.\S*\.v4\.\S+ \t?{[^}]*}, \[%r?d?\d+)\]", lambda m: f"{m[1]}+4]"),
    "no barrier": (r"bar\.sync \t0;", lambda m: ""),
    "another operand": (r"((?:fma|mul)\.rn\.f32 \t%f\d+, )(%f\d+), (%f\d+)", lambda m: f"{m[1]}{m[2]}, {m[2]}"),
}
MUTATED = ("matvec_iq1_m", "matmul_small_iq2_xxs")
SITES = 3


@pytest.mark.parametrize("what", MUTATIONS)
@pytest.mark.parametrize("name", MUTATED)
def test_a_mutation_is_seen(name: str, what: str) -> None:
    """Some sites change nothing (a barrier after the last read, a sum with zero): most of a sample must be seen."""
    pattern, change = MUTATIONS[what]
    case = next(cases(name))
    text = alone(program("80").module, name).split("\n")
    case.clear()
    lines = sorted(interpret(Program("\n".join(text)), case).lines)
    hits = [k for k in lines if re.search(pattern, text[k - 1])]
    assert hits, f"{name} executes no {pattern}"
    sample = hits[:: max(1, len(hits) // SITES)][:SITES]
    seen = 0
    for line in sample:
        changed = [*text]
        changed[line - 1] = re.sub(pattern, change, text[line - 1])
        assert changed[line - 1] != text[line - 1]
        case.clear()
        try:
            seen += bool(compare(Program("\n".join(changed)), case))
        except PtxError:
            seen += 1
    assert 2 * seen >= len(sample), f"{seen} of {len(sample)} changes are seen: {what} in {name}"


def alone(module: Module, name: str) -> str:
    """The PTX without all other kernels."""
    parts, position = [], 0
    for other, function in module.functions.items():
        if other != name and function.entry:
            parts.append(module.text[position : module.text.rindex(".visible .entry", 0, function.start)])
            position = function.end + 1
    return "".join([*parts, module.text[position:]])
