"""The PTX interpreter: threads that part and meet, warps, memory, and that a wrong access is seen. Needs no toolkit."""

from __future__ import annotations

import random
import struct

import numpy as np
import numpy.typing as npt
import pytest

from sim.ptx import Counts, Global, Program, PtxError, Region

Words = npt.NDArray[np.uint32]
HEAD = """.version 7.8
.target sm_80
.address_size 64
"""
ENTRY = """.visible .entry probe(.param .align 8 .b8 args[16])
{
.reg .pred %p<9>;
.reg .b32 %r<40>;
.reg .b64 %rd<20>;
ld.param.v2.u64 {%rd1, %rd2}, [args];
mov.u32 %r1, %tid.x;
mul.wide.u32 %rd3, %r1, 4;
add.s64 %rd4, %rd1, %rd3;
add.s64 %rd5, %rd2, %rd3;
"""
LINE = (HEAD + ENTRY).count("\n") + 1  # of the first line of a body
INPUT, OUTPUT = 0x1000, 0x8000


def launch(
    body: str, values: Words | None = None, threads: int = 32, results: int = 0, shared: int = 0, before: str = ""
) -> tuple[Words, Counts]:
    """Run a body: %r1 is the thread, %rd4 its word of the input, %rd5 its word of the output."""
    given = np.arange(threads, dtype=np.uint32) if values is None else values
    size = 4 * (results or threads)
    out = Region(OUTPUT, np.zeros(size, np.uint8), np.zeros(size, bool), "out")
    memory = Global([Region(INPUT, given.view(np.uint8), name="in"), out])
    program = Program(HEAD + before + ENTRY + body + "\nret;\n}\n")
    counts = program.launch("probe", (1, 1, 1), threads, shared, struct.pack("<QQ", INPUT, OUTPUT), memory)
    return out.data.view(np.uint32), counts


def fails(body: str, threads: int = 32, shared: int = 0, before: str = "") -> str:
    """What the error says after the line."""
    with pytest.raises(PtxError) as caught:
        launch(body, None, threads, shared=shared, before=before)
    assert str(caught.value).startswith("ptx line ")
    return str(caught.value).split(": ", 2)[2]


# ---- threads part and meet ----


def test_loops_of_different_length() -> None:
    body = """
mov.u32 %r2, 0;
mov.u32 %r3, 0;
LOOP:
setp.ge.u32 %p1, %r3, %r1;
@%p1 bra DONE;
add.u32 %r2, %r2, %r3;
add.u32 %r3, %r3, 1;
bra LOOP;
DONE:
st.global.u32 [%rd5], %r2;"""
    out, counts = launch(body, threads=96)
    assert out.tolist() == [n * (n - 1) // 2 for n in range(96)]
    assert counts.opcodes["add.u32"] == 2 * (31 + 63 + 95)  # each warp as often as its longest lane
    assert counts.opcodes["st.global.u32"] == 3  # all lanes together again


def test_a_switch() -> None:
    body = """
and.b32 %r2, %r1, 3;
TABLE: .branchtargets A, B, A, C;
brx.idx %r2, TABLE;
A:
mov.u32 %r3, 10;
bra.uni END;
B:
mov.u32 %r3, 20;
bra.uni END;
C:
mov.u32 %r3, 30;
END:
st.global.u32 [%rd5], %r3;"""
    out, _ = launch(body)
    assert out.tolist() == [10, 20, 10, 30] * 8


def test_some_threads_end_early() -> None:
    body = """
setp.gt.u32 %p1, %r1, 39;
@%p1 exit;
bar.sync 0;
st.global.u32 [%rd5], %r1;"""
    out, _ = launch(body, threads=64)
    assert out.tolist() == [n if n < 40 else 0 for n in range(64)]


def test_a_call() -> None:
    function = """.func (.param .b32 back) triple(.param .b32 triple_0)
{
.reg .b32 %r<4>;
.reg .pred %p<2>;
ld.param.u32 %r1, [triple_0];
setp.lt.u32 %p1, %r1, 8;
@%p1 bra SMALL;
mul.lo.u32 %r1, %r1, 3;
SMALL:
st.param.b32 [back+0], %r1;
ret;
}
"""
    body = """
{
.param .b32 param0;
st.param.b32 [param0+0], %r1;
.param .b32 retval0;
call.uni (retval0), triple, (param0);
ld.param.b32 %r9, [retval0+0];
}
{
.param .b32 param0;
st.param.b32 [param0+0], %r9;
.param .b32 retval0;
call.uni (retval0), triple, (param0);
ld.param.b32 %r9, [retval0+0];
}
st.global.u32 [%rd5], %r9;"""
    out, _ = launch(body, before=function)
    assert out.tolist() == [n if n < 8 else 9 * n for n in range(32)]


def test_blocks_of_a_grid() -> None:
    text = (
        HEAD
        + """.visible .entry probe(.param .u64 to)
{
.reg .b32 %r<9>;
.reg .b64 %rd<9>;
ld.param.u64 %rd1, [to];
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ctaid.y;
mov.u32 %r3, %nctaid.x;
mad.lo.s32 %r4, %r2, %r3, %r1;
mov.u32 %r5, %ntid.x;
mov.u32 %r6, %tid.x;
mad.lo.s32 %r7, %r4, %r5, %r6;
mul.wide.u32 %rd2, %r7, 4;
add.s64 %rd3, %rd1, %rd2;
st.global.u32 [%rd3], %r7;
ret;
}
"""
    )
    out = Region(64, np.zeros(4 * 3 * 5 * 40, np.uint8))
    for lanes in (64, 100_000):  # one block in a batch, and all
        Program(text).launch("probe", (3, 5, 1), 40, 0, struct.pack("<Q", 64), Global([out]), lanes)
        assert out.data.view(np.uint32).tolist() == list(range(600))
        out.data[:] = 0


# ---- memory ----


def test_widths_and_vectors() -> None:
    body = """
.reg .b16 %rs<5>;
ld.global.nc.v4.u8 {%rs1, %rs2, %rs3, %rs4}, [%rd4];
ld.global.s8 %r2, [%rd4+3];
mul.wide.u16 %r3, %rs2, %rs3;
add.s32 %r2, %r2, %r3;
st.global.u32 [%rd5], %r2;"""
    words = np.frombuffer(random.Random(1).randbytes(128), np.uint32)
    parts = words.view(np.uint8).reshape(-1, 4).astype(int)
    out, _ = launch(body, words)
    wanted = parts[:, 1] * parts[:, 2] + words.view(np.int8).reshape(-1, 4)[:, 3]
    assert out.view(np.int32).tolist() == wanted.tolist()


def test_module_data_local_and_generic_addresses() -> None:
    before = ".const .align 4 .u32 table[4] = {7, 8, 0xfffffff0, 10};\n"
    body = """
.local .align 8 .b8 depot[16];
.shared .align 4 .b8 sums[128];
and.b32 %r2, %r1, 3;
mul.wide.u32 %rd6, %r2, 4;
mov.u64 %rd7, table;
add.s64 %rd7, %rd7, %rd6;
ld.const.u32 %r3, [%rd7];
mov.u64 %rd8, depot;
cvta.local.u64 %rd9, %rd8;
add.s64 %rd9, %rd9, %rd6;
st.u32 [%rd9], %r3;
ld.local.u32 %r4, [depot];
setp.eq.u32 %p1, %r2, 0;
@%p1 st.global.u32 [%rd5], %r4;"""
    out, _ = launch(
        body.replace("ld.local.u32 %r4, [depot]", "add.s64 %rd8, %rd8, %rd6;\nld.local.u32 %r4, [%rd8]"), before=before
    )
    assert out.tolist() == [7, 0, 0, 0] * 8
    assert fails(body, before=before) == "thread 1 of block 0: reads unwritten local memory at 0"


SHARED = """
.shared .align 4 .b8 own[256];
shl.b32 %r2, %r1, 2;
mov.u32 %r3, own;
add.s32 %r4, %r3, %r2;
st.shared.u32 [%r4], %r1;
BARRIER
xor.b32 %r5, %r2, 124;
add.s32 %r6, %r3, %r5;
ld.shared.u32 %r7, [%r6];
st.global.u32 [%rd5], %r7;"""


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "barrier.sync 0;", "bar.warp.sync -1;"])
def test_shared_memory_behind_a_barrier(barrier: str) -> None:
    out, _ = launch(SHARED.replace("BARRIER", barrier))
    assert out.tolist() == list(range(31, -1, -1))


def test_a_removed_barrier_is_a_race() -> None:
    problem = "thread 0 of block 0: reads shared memory at 124 that thread 31 wrote, no barrier between"
    assert fails(SHARED.replace("BARRIER", "")) == problem


def test_a_warp_barrier_does_not_order_two_warps() -> None:
    body = SHARED.replace("BARRIER", "bar.warp.sync -1;").replace("124", "252")
    problem = "thread 0 of block 0: reads shared memory at 252 that thread 63 wrote, no barrier between"
    assert fails(body, threads=64) == problem


def test_write_after_read_is_a_race() -> None:
    body = SHARED.replace("BARRIER", "bar.sync 0;").replace("st.global", "st.shared.u32 [%r4], %r7;\nst.global")
    problem = "thread 0 of block 0: writes shared memory at 0 that thread 31 read, no barrier between"
    assert fails(body) == problem


def test_dynamic_shared_memory_has_an_end() -> None:
    before = ".extern .shared .align 16 .b8 dynamic[];\n"
    body = (
        SHARED.replace(".shared .align 4 .b8 own[256];", "").replace("own", "dynamic").replace("BARRIER", "bar.sync 0;")
    )
    out, _ = launch(body, shared=128, before=before)
    assert out.tolist() == list(range(31, -1, -1))
    problem = "thread 31 of block 0: 4 bytes at 124 are outside of shared memory of 124 bytes"
    assert fails(body, shared=124, before=before) == problem


COPY = """
.shared .align 16 .b8 own[512];
shl.b32 %r2, %r1, 4;
mov.u32 %r3, own;
add.s32 %r4, %r3, %r2;
and.b32 %r5, %r1, 7;
mul.wide.u32 %rd6, %r5, 16;
add.s64 %rd7, %rd1, %rd6;
cp.async.cg.shared.global [%r4], [%rd7], 16;
cp.async.commit_group;
cp.async.ca.shared.global [%r4], [%rd7], 4;
cp.async.commit_group;
cp.async.wait_group COUNT;
ld.shared.u32 %r6, [%r4+WHERE];
st.global.u32 [%rd5], %r6;"""


def test_asynchronous_copies() -> None:
    words = np.arange(100, 132, dtype=np.uint32)
    for count, where in (("0", "0"), ("0", "4"), ("1", "4")):
        out, _ = launch(COPY.replace("COUNT", count).replace("WHERE", where), words)
        assert out.tolist() == [100 + 4 * (n % 8) + int(where) // 4 for n in range(32)]
    problem = "thread 0 of block 0: reads shared memory at 0 whose copy was not waited for"
    assert fails(COPY.replace("COUNT", "1").replace("WHERE", "0")) == problem
    assert fails(COPY.replace("COUNT", "2").replace("WHERE", "4")) == problem.replace("at 0", "at 4")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("ld.global.u32 %r2, [%rd4+2];", "thread 0 of block 0: address 0x1002 is not a multiple of 4"),
        (
            "ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd4];",
            "thread 1 of block 0: address 0x1004 is not a multiple of 16",
        ),
        (
            "ld.global.u32 %r2, [%rd4+4];",
            "thread 31 of block 0: 4 bytes at 0x1080 are outside of known memory; before it ends 0x1080 (in + 128)",
        ),
        ("ld.global.u32 %r2, [%rd4+-4096];", "thread 0 of block 0: 4 bytes at 0x0 are outside of known memory"),
        ("ld.global.u32 %r2, [%rd5];", "thread 0 of block 0: reads unwritten memory at 0x8000 (out + 0)"),
        ("st.global.u32 [%rd2], %r1;", "thread 0 of block 0: two threads write different values at 0x8000"),
        (
            ".shared .align 4 .b8 own[256];\nld.shared.u32 %r2, [own];",
            "thread 0 of block 0: reads unwritten shared memory at 0",
        ),
        (
            ".shared .align 4 .b8 own[256];\nst.shared.u32 [own], %r1;",
            "thread 0 of block 0: two threads write different values to shared memory at 0",
        ),
        ("setp.eq.u32 %p1, %r1, 7;\n@%p1 trap;", "thread 7 of block 0 traps"),
        ("frobnicate.b32 %r2, %r1;", "unknown opcode frobnicate"),
        ("add.cc.u32 %r2, %r1, %r1;", "unknown modifier .cc"),
        ("add.f16 %r2, %r1, %r1;", "unknown type"),
        (
            "setp.gt.u32 %p1, %r1, 15;\n@%p1 bra B;\nbar.sync 0;\nbra C;\nB:\nbar.sync 0;\nC:",
            "other threads of block 0 wait at line 19",
        ),
        ("setp.gt.u32 %p1, %r1, 15;\n@%p1 bra C;\nshfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;\nC:\nbar.sync 0;", "NEVER"),
        (
            "setp.gt.u32 %p1, %r1, 15;\n@%p1 bra C;\nshfl.sync.bfly.b32 %r2, %r1, 16, 31, 65535;\nC:",
            "thread 0 of block 0: takes the value of lane 16, which does not take part",
        ),
        (
            "shfl.sync.bfly.b32 %r2, %r1, 1, 31, 65535;",
            "thread 16 of block 0 the mask does not name its own lane",
        ),
    ],
)
def test_what_is_wrong_is_seen(body: str, problem: str) -> None:
    if problem == "NEVER":
        problem = "thread 0 of block 0 waits for lanes of its mask that never come"
    assert fails(body) == problem


def test_an_error_names_the_line() -> None:
    with pytest.raises(PtxError, match=f"^ptx line {LINE + 1}: ld.global.u32 %r3, \\[%rd1\\+1\\]: ") as caught:
        launch("ld.global.u32 %r2, [%rd1];\nld.global.u32 %r3, [%rd1+1];")
    assert caught.value.line == LINE + 1


# ---- warps ----


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8])
def test_shuffle(mode: str, width: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = f"""
ld.global.u32 %r2, [%rd4];
shfl.sync.{mode}.b32 %r3|%p1, %r2, 3, {clamp}, -1;
selp.u32 %r4, 1, 0, %p1;
shl.b32 %r3, %r3, 1;
or.b32 %r3, %r3, %r4;
st.global.u32 [%rd5], %r3;"""
    given = np.arange(64, dtype=np.uint32) * 5 + 1
    out, _ = launch(body, given, 64)
    for lane in range(64):
        start, inner = lane // width * width, lane % width
        other = {"up": inner - 3, "down": inner + 3, "bfly": inner ^ 3, "idx": 3}[mode]
        inside = 0 <= other < width
        value = int(given[start + other]) if inside else int(given[lane])
        assert out[lane] == 2 * value + inside


@pytest.mark.parametrize("mask", [0xFFFFFFFF, 0x0000FFFF])
def test_votes_and_reductions(mask: int) -> None:
    last = 31 if mask == 0xFFFFFFFF else 15
    body = f"""
setp.gt.u32 %p1, %r1, {last};
@%p1 bra END;
ld.global.u32 %r2, [%rd4];
and.b32 %r3, %r2, 1;
setp.eq.u32 %p2, %r3, 1;
vote.sync.ballot.b32 %r4, %p2, {mask};
redux.sync.add.s32 %r5, %r2, {mask};
redux.sync.max.s32 %r6, %r2, {mask};
redux.sync.xor.b32 %r7, %r2, {mask};
vote.sync.any.pred %p3, %p2, {mask};
vote.sync.all.pred %p4, %p2, {mask};
activemask.b32 %r8;
selp.u32 %r9, 2, 0, %p3;
selp.u32 %r10, 1, 0, %p4;
xor.b32 %r4, %r4, %r5;
xor.b32 %r4, %r4, %r6;
add.u32 %r4, %r4, %r7;
add.u32 %r4, %r4, %r8;
xor.b32 %r4, %r4, %r9;
xor.b32 %r4, %r4, %r10;
st.global.u32 [%rd5], %r4;
END:"""
    words = np.frombuffer(random.Random(2).randbytes(128), np.uint32)
    out, _ = launch(body, words)
    taking = [int(w) for w in words[: last + 1]]
    odd = [w & 1 for w in taking]
    xor = 0
    for w in taking:
        xor ^= w
    value = sum(bit << k for k, bit in enumerate(odd)) ^ (sum(taking) & 0xFFFFFFFF)
    value ^= max(w - (w >> 31 << 32) for w in taking) & 0xFFFFFFFF
    value = (value + xor + mask) & 0xFFFFFFFF
    value ^= 2 * any(odd) ^ all(odd)
    assert out.tolist() == [value] * (last + 1) + [0] * (31 - last)


# Rows, columns of a, registers of a, b and c.
SHAPES = {"m16n8k32": (16, 32, 4, 2, 4), "m16n8k16": (16, 16, 2, 1, 4), "m8n8k16": (8, 16, 1, 1, 2)}


@pytest.mark.parametrize("extent", SHAPES)
@pytest.mark.parametrize("a_kind", ["s8", "u8"])
def test_matrix_units(extent: str, a_kind: str) -> None:
    rows, depth, a_count, b_count, c_count = SHAPES[extent]
    names = [f"%r{10 + k}" for k in range(a_count + b_count + c_count)]
    a, b = ", ".join(names[:a_count]), ", ".join(names[a_count : a_count + b_count])
    c = ", ".join(names[a_count + b_count :])
    loads = "\n".join(f"ld.global.u32 {name}, [%rd4+{128 * k}];" for k, name in enumerate(names))
    stores = "\n".join(f"st.global.u32 [%rd5+{128 * k}], {name};" for k, name in enumerate(names[-c_count:]))
    unit = f"mma.sync.aligned.{extent}.row.col.s32.{a_kind}.s8.s32 {{{c}}}, {{{a}}}, {{{b}}}, {{{c}}};"
    words = np.frombuffer(random.Random(extent).randbytes(128 * len(names)), np.uint32)
    out, _ = launch("\n".join((loads, unit, stores)), words, results=32 * c_count)
    left, right = np.zeros((rows, depth), int), np.zeros((depth, 8), int)
    start = np.zeros((rows, 8), int)
    bytes_of = words.view(np.int8).reshape(len(names), 32, 4).astype(int)
    for lane in range(32):
        for register in range(a_count):
            for k in range(4):
                value = (
                    bytes_of[register, lane, k] % (256 if a_kind == "u8" else 1000)
                    if a_kind == "u8"
                    else bytes_of[register, lane, k]
                )
                left[lane // 4 + 8 * (register % 2), lane % 4 * 4 + k + 16 * (register // 2)] = value
        for register in range(b_count):
            for k in range(4):
                right[lane % 4 * 4 + k + 16 * register, lane // 4] = bytes_of[a_count + register, lane, k]
        for register in range(c_count):
            value = words.view(np.int32)[32 * (a_count + b_count + register) + lane]
            start[lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2] = value
    product = (start + left @ right).astype(np.int64).astype(np.uint32)
    for lane in range(32):
        for register in range(c_count):
            wanted = product[lane // 4 + 8 * (register // 2), lane % 4 * 2 + register % 2]
            assert out[32 * register + lane] == wanted


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices(transposed: bool) -> None:
    body = f"""
.shared .align 16 .b8 own[512];
shl.b32 %r2, %r1, 4;
mov.u32 %r3, own;
add.s32 %r4, %r3, %r2;
mul.wide.u32 %rd6, %r1, 16;
add.s64 %rd7, %rd1, %rd6;
ld.global.v4.u32 {{%r5, %r6, %r7, %r8}}, [%rd7];
st.shared.v4.u32 [%r4], {{%r5, %r6, %r7, %r8}};
bar.sync 0;
ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r4];
st.global.u32 [%rd5], %r10;
st.global.u32 [%rd5+128], %r11;
st.global.u32 [%rd5+256], %r12;
st.global.u32 [%rd5+384], %r13;"""
    words = np.frombuffer(random.Random(3).randbytes(512), np.uint32)
    out, _ = launch(body, words, results=128)
    halves = words.view(np.uint16)
    for matrix in range(4):
        for lane in range(32):
            pair = []
            for k in (0, 1):
                row, column = lane // 4, lane % 4 * 2 + k
                if transposed:
                    row, column = column, row
                pair.append(int(halves[64 * matrix + 8 * row + column]))
            assert out[32 * matrix + lane] == pair[0] | pair[1] << 16


def test_half_of_a_warp_has_no_matrix_units() -> None:
    body = """
setp.gt.u32 %p1, %r1, 15;
@%p1 exit;
mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r10, %r11}, {%r1}, {%r1}, {%r10, %r11};"""
    assert fails(body) == "thread 0 of block 0 needs all 32 lanes, of which some have ended"


# ---- launches ----


def test_arguments_and_names_are_checked() -> None:
    program = Program(HEAD + ENTRY + "ret;\n}\n")
    with pytest.raises(ValueError, match=r"^launch: probe takes 16 bytes of arguments, 8 were given$"):
        program.launch("probe", (1, 1, 1), 32, 0, bytes(8), Global())
    with pytest.raises(KeyError, match=r"the module has no kernel nobody, only probe"):
        program.launch("nobody", (1, 1, 1), 32, 0, bytes(8), Global())
    with pytest.raises(ValueError, match=r"^global memory: 0x10\.\.0x20 overlaps 0x18\.\.$"):
        Global([Region(0x18, np.zeros(8, np.uint8)), Region(0x10, np.zeros(16, np.uint8))])


def test_a_loop_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.ptx.run.MAX_STEPS", 100)
    assert fails("L:\nbra L;") == "does not end within 100 steps"
