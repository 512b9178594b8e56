"""What a machine says of Metal, streams, events; and what it says without Metal."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import lutkern
from test_cuda_runtime import run
from weights import by_name, random_tensor

NO_METAL = """
import lutkern
import numpy as np
t = lutkern.pack(np.ones((2, 256), np.float32), "iq2_xxs")
print([d for d in lutkern.devices() if d.name.startswith("metal")])
for call in (lambda: t.to(device="metal"), lambda: lutkern.Stream("metal:0"), lambda: lutkern.Event("metal"),
             lambda: lutkern.synchronize("metal"), lambda: lutkern.to_device(np.ones(2), "metal"),
             lambda: lutkern.split_experts(
                 lutkern.pack(np.ones((2, 2, 256), np.float32), "q8_0"), [0, 1], ("cpu", "metal"))):
    try:
        call()
    except RuntimeError as error:
        print(error)
metal = lutkern.info()["metal"]
print(lutkern.supports("iq1_m", "matvec", "metal"), metal["devices"], metal["kernels"], metal["system"])
print(lutkern.matvec(t, np.ones(256, np.float32)).shape)
"""


def test_a_machine_without_metal():
    found = run(NO_METAL, LUTKERN_OBJC="/nowhere/libobjc.A.dylib")
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    reason = "no Metal: LUTKERN_OBJC names '/nowhere/libobjc.A.dylib', which could not be loaded"
    assert lines[0].startswith(f"[Device(name='metal', available=False, detail={reason!r}")
    assert lines[1:7] == [
        f"to: no device 'metal': {reason}",
        f"Stream: no device 'metal:0': {reason}",
        f"Event: no device 'metal': {reason}",
        f"synchronize: no device 'metal': {reason}",
        f"to_device: no device 'metal': {reason}",
        f"to: no device 'metal': {reason}",
    ]
    assert lines[7:] == ["None [] {} None", "(2,)"]


NO_ROOM = """
import lutkern
t = lutkern.PackedTensor.from_blocks(bytes(4096 * 56 * 16), "iq1_m", (4096, 4096))
for layout in ("tiles", "blocks"):
    try:
        print(t.to(device="metal", layout=layout))
    except MemoryError as error:
        print(error)
"""


@pytest.mark.usefixtures("fake_metal")
def test_a_device_without_room():
    found = run(NO_ROOM, LUTKERN_FAKE_METAL="memory=1000000")
    assert found.stderr == ""
    first, second = found.stdout.splitlines()
    assert first.startswith("to: iq1_m of 4096 x 4096 on metal:0: device_alloc: ")
    assert second == "PackedTensor(iq1_m, 4096 x 4096, 1.75 bits per weight, blocks, metal:0)"


@pytest.mark.usefixtures("metal")
def test_devices():
    gpus = [d for d in lutkern.devices() if d.name.startswith("metal")]
    assert [d.name for d in gpus] == [f"metal:{i}" for i in range(len(gpus))]
    for device in gpus:
        assert device.available
        assert device.memory_bytes >= device.free_bytes > 0
        assert re.search(r", GPU family Apple\d+, \d+\.\d GiB$", device.detail)


@pytest.mark.usefixtures("metal")
def test_info_and_supports():
    found = json.loads(json.dumps(lutkern.info()))
    metal = found["metal"]
    assert metal["absent"] is None
    assert metal["system"].startswith("macOS ")
    assert metal["language"].startswith("Metal ")
    assert metal["text_bytes"] > 10000
    assert [d["name"] for d in metal["devices"]] == [n for n in found["devices"] if n.startswith("metal:")]
    assert lutkern.supports("iq1_m", "matvec", "metal") == "matvec_iq1_m"
    assert lutkern.supports("iq1_m", "matmul", "metal:0", tokens=4) == "matmul_small_iq1_m"
    assert lutkern.supports("iq1_m", "matmul", "metal", tokens=512) == "matmul_large_iq1_m"
    assert lutkern.supports("iq1_m", "moe", "metal", tokens=1) == "moe_up_iq1_m"
    assert lutkern.supports("q4_k", "matvec", "metal", layout="blocks") == "product_any_q4_k"
    assert lutkern.supports("q4_k", "matvec", "metal", layout="tiles") is None
    assert lutkern.supports("q4_k", "matvec", "metal") == "product_any_q4_k"
    assert lutkern.supports("iq1_m", "pack", "metal") is None
    assert metal["kernels"]["iq2_xs"]["tiles"]["dequantize"] == "dequantize_iq2_xs"
    with pytest.raises(
        ValueError, match=r"^supports: unknown device 'metal:77', expected one of: cpu, cuda, metal, .*metal:0"
    ):
        lutkern.supports("iq1_m", "matvec", "metal:77")


@pytest.mark.usefixtures("metal")
def test_the_command_line_shows_the_devices(capsys):
    from lutkern.cli import main

    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "Metal system: " in text
    assert "bytes of text" in text
    assert "kernels that would run on metal:0:" in text
    assert "product_any_q4_k" in text


@pytest.mark.usefixtures("metal")
def test_streams_and_events():
    stream = lutkern.Stream("metal:0")
    assert stream.device == "metal:0"
    assert repr(stream) == f"Stream(metal:0, {stream.handle:#x})"
    begin, end = lutkern.Event("metal"), lutkern.Event("metal:0")
    x = lutkern.to_device(np.ones(512, np.float32), "metal", stream=stream)
    t = random_tensor(by_name("iq2_xxs"), (9, 512)).to(device="metal")
    begin.record(stream)
    y = lutkern.matvec(t, x)
    assert y._memory.stream == stream.handle
    end.record(stream)
    stream.synchronize()
    assert begin.elapsed(end) >= 0
    del stream
    assert np.isfinite(y.numpy()).all()  # its memory goes back in the order of a stream that must still be there


BAD = {
    "capture": (
        lambda: lutkern.capture(lutkern.Stream("metal")).__enter__(),
        RuntimeError,
        "capture: stream is on metal:0, expected one on cuda: graphs exist there only",
    ),
    "stream": (
        lambda: lutkern.Stream("metal:99"),
        RuntimeError,
        "Stream: no device 'metal:99', the last one is metal:",
    ),
    "record": (
        lambda: lutkern.Event("metal").record("x"),
        TypeError,
        "record: stream is str, expected a number, or a stream of lutkern",
    ),
    "synchronize": (
        lambda: lutkern.synchronize("cpu"),
        ValueError,
        "synchronize: device is 'cpu', expected cuda, cuda:N, metal or metal:N",
    ),
}


@pytest.mark.usefixtures("metal")
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)


@pytest.mark.usefixtures("metal")
def test_two_devices():
    if sum(d.name.startswith("metal:") for d in lutkern.devices()) < 2:
        pytest.skip("one device")
    t = random_tensor(by_name("iq2_xxs"), (9, 512)).to(device="metal:0")
    with pytest.raises(ValueError, match=r"^matvec: stream is on metal:1, the weight is on metal:0$"):
        lutkern.matvec(t, np.ones(512, np.float32), stream=lutkern.Stream("metal:1"))
    with pytest.raises(ValueError, match=r"^elapsed: the later event is on metal:1, this one is on metal:0$"):
        lutkern.Event("metal:0").elapsed(lutkern.Event("metal:1"))


FAILING = """
import gc
import lutkern
import numpy as np
t = lutkern.PackedTensor.from_blocks(bytes(64 * 66), "iq2_xxs", (64, 256))
try:
    there, shared = t.to(device="metal"), t.to(device="metal", layout="blocks")
    stream = lutkern.Stream("metal")
    x = lutkern.to_device(np.ones(256, np.float32), "metal")
    first, second = lutkern.matvec(there, x, stream=stream), lutkern.matvec(shared, x)
    assert not first.numpy().any() and not second.numpy().any() and np.array_equal(there.blocks(), t.blocks())
    print("done")
except (RuntimeError, MemoryError) as error:
    print(error)
gc.collect()
print(np.isfinite(lutkern.matvec(t, np.ones(256, np.float32))).all())
"""


ASKED = "the settings asked for a failure"
FAILURES = {
    1: "to: no device 'metal': no Metal: this Mac has no Metal device",
    3: "to: iq2_xxs of 64 x 256 on metal:0: device_alloc: newBufferWithLength failed: no memory for 4480 bytes",
    4: "done",  # little memory that cannot be wrapped is copied
    8: f"matvec: matvec_iq2_xxs: newLibraryWithSource failed: {ASKED}",
    20: f"device_copy: commandBuffer failed: {ASKED}",
    40: "done",
}


@pytest.mark.usefixtures("fake_metal")
@pytest.mark.parametrize("call", list(FAILURES))
def test_a_call_of_metal_fails(call):
    found = run(FAILING, LUTKERN_FAKE_METAL=f"fail={call}")
    assert (found.returncode, found.stderr.replace(f"fake metal: {ASKED}\n", "")) == (0, "")
    assert found.stdout.splitlines() == [FAILURES[call], "True"]


NOT_WRAPPED = """
import lutkern
import numpy as np
blocks = np.random.default_rng(1).integers(0, 16, (64, 34), np.uint8)
t = lutkern.PackedTensor.from_blocks(blocks, "q8_0", (64, 32))
there = t.to(device="metal")
assert np.array_equal(there.blocks(), blocks)
assert np.array_equal(lutkern.dequantize(there).numpy(), lutkern.dequantize(t))
rows = 1 << 19
try:
    lutkern.PackedTensor.from_blocks(bytes(rows * 34), "q8_0", (rows, 32)).to(device="metal")
except MemoryError as error:
    print(error)
"""


@pytest.mark.usefixtures("fake_metal")
def test_memory_that_metal_does_not_wrap():
    found = run(NOT_WRAPPED, LUTKERN_FAKE_METAL="wraps=0")
    assert (found.returncode, found.stderr) == (0, "")
    where = "to: q8_0 of 524288 x 32 on metal:0: device_wrap: "
    assert found.stdout == f"{where}newBufferWithBytesNoCopy failed: 17825792 bytes of the CPU\n"


REFUSED = """
import lutkern
import numpy as np
t = lutkern.PackedTensor.from_blocks(bytes(64 * 66), "iq2_xxs", (64, 256)).to(device="metal")
try:
    lutkern.matvec(t, np.ones(256, np.float32))
except RuntimeError as error:
    print(error)
"""


@pytest.mark.usefixtures("fake_metal")
def test_what_the_compiler_says_is_told():
    found = run(REFUSED, LUTKERN_FAKE_METAL="compile=program_source:7: error: no such type")
    assert found.stderr == ""
    assert found.stdout.startswith("matvec: ")
    assert "program_source:7: error: no such type" in found.stdout


LATE = """
import gc
import threading
import lutkern
import numpy as np

rng = np.random.default_rng(0)
x = rng.standard_normal((3, 256)).astype(np.float32)
wide = lutkern.pack(rng.standard_normal((32, 256), np.float32), "iq2_xxs", layout="blocks")
back = lutkern.pack(rng.standard_normal((256, 32), np.float32), "iq2_xxs", layout="blocks")
expected = lutkern.matmul(back.to(device="metal"), lutkern.matmul(wide.to(device="metal"), x))

# Everything that went in is gone before anything has run.
y = lutkern.matmul(back.to(device="metal"), lutkern.matmul(wide.to(device="metal"), lutkern.to_device(x, "metal")))
gc.collect()
assert np.array_equal(y.numpy(), expected)

# The CPU reads what the GPU writes, on the stream of the array and on another one.
for stream in (None, lutkern.Stream("metal")):
    y = lutkern.matmul(wide.to(device="metal"), lutkern.to_device(x, "metal"), stream=stream)
    assert np.array_equal(np.from_dlpack(y), lutkern.matmul(wide.to(device="metal"), x))
    z = lutkern.matmul(back.to(device="metal"), y, stream=lutkern.Stream("metal"))
    assert np.array_equal(z.numpy(), expected)

# Shared bytes change when the work that reads them is done.
source = bytearray(wide.blocks().tobytes())
shared = lutkern.PackedTensor.from_blocks(source, "iq2_xxs", (32, 256)).to(device="metal", layout="blocks")
y = lutkern.matmul(shared, lutkern.to_device(x, "metal"))
lutkern.synchronize("metal")
source[:] = bytes(len(source))
assert np.any(y.numpy()) and not np.any(lutkern.matmul(shared, x))

# Many threads at once
there = wide.to(device="metal")
once, found = lutkern.matmul(there, x), []
work = lambda: found.extend(lutkern.matmul(there, x) for _ in range(3))
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
assert len(found) == 12 and all(np.array_equal(f, once) for f in found)
print("done")
"""


@pytest.mark.usefixtures("fake_metal")
@pytest.mark.parametrize("seed", [0, 5])
def test_work_that_runs_late(seed):
    found = run(LATE, LUTKERN_FAKE_METAL=f"seed={seed}")
    assert (found.returncode, found.stderr, found.stdout) == (0, "", "done\n")
