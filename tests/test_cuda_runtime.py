"""What a machine says of its GPUs, streams, events, graphs; and what it says without a driver."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import lutkern
from gpu import Foreign
from test_moe import layer, routes
from weights import by_name, random_tensor


def run(program, **environment):
    env = {k: v for k, v in os.environ.items() if k not in environment} | {k: v for k, v in environment.items() if v}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120)


NO_DRIVER = """
import lutkern
import numpy as np
t = lutkern.pack(np.ones((2, 256), np.float32), "iq2_xxs")
print(lutkern.devices()[1])
for call in (lambda: t.to(device="cuda"), lutkern.Stream, lutkern.synchronize, lambda: lutkern.to_device(np.ones(2)),
             lambda: lutkern.split_experts(lutkern.pack(np.ones((2, 2, 256), np.float32), "q8_0"), [0, 1])):
    try:
        call()
    except RuntimeError as error:
        print(error)
print(lutkern.supports("iq1_m", "matvec", "cuda"), lutkern.info()["cuda"]["devices"], lutkern.info()["cuda"]["driver"])
print(lutkern.matvec(t, np.ones(256, np.float32)).shape)
"""


def test_a_machine_without_a_driver():
    found = run(NO_DRIVER, LUTKERN_LIBCUDA="/nowhere/libcuda.so.1")
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    reason = "no CUDA driver: LUTKERN_LIBCUDA names '/nowhere/libcuda.so.1', which could not be loaded"
    assert lines[0].startswith(f"Device(name='cuda', available=False, detail={reason!r}")
    assert lines[1:6] == [
        f"to: no device 'cuda': {reason}",
        f"Stream: no device 'cuda': {reason}",
        f"synchronize: no device 'cuda': {reason}",
        f"to_device: no device 'cuda': {reason}",
        f"to: no device 'cuda:0': {reason}",
    ]
    assert lines[6:] == ["None [] None", "(2,)"]


NO_ROOM = """
import lutkern
t = lutkern.PackedTensor.from_blocks(bytes(4096 * 56 * 16), "iq1_m", (4096, 4096))
try:
    t.to(device="cuda")
except MemoryError as error:
    print(error)
print(t.to(device="cpu") is t)
"""


FAILING = """
import gc
import lutkern
import numpy as np
t = lutkern.PackedTensor.from_blocks(bytes(64 * 56), "iq1_m", (64, 256))
try:
    there = t.to(device="cuda")
    stream = lutkern.Stream()
    x, y = lutkern.to_device(np.ones(256, np.float32)), lutkern.to_device(np.ones(64, np.float32))
    first = lutkern.matvec(there, x, stream=stream)
    with lutkern.capture(stream) as graph:
        lutkern.matvec(there, x, out=y, stream=stream)
    graph.launch()
    assert not y.numpy().any() and not first.numpy().any() and np.array_equal(there.blocks(), t.blocks())
    print("done")
except RuntimeError as error:
    print(error)
gc.collect()
print(np.isfinite(lutkern.matvec(t, np.ones(256, np.float32))).all())
"""


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("call", [3, 20, *range(110, 200, 15)])
def test_a_call_of_the_driver_fails(call):
    found = run(FAILING, LUTKERN_FAKE_CUDA=f"fail={call}")
    assert (found.returncode, found.stderr) == (0, "")
    text, after = found.stdout.splitlines()
    assert after == "True"
    assert text == "done" or re.search(r": cu[A-Z]\w+ failed: unknown error \(CUDA_ERROR_UNKNOWN\)$", text)


@pytest.mark.usefixtures("cuda")
def test_a_device_without_room():
    found = run(NO_ROOM, LUTKERN_FAKE_CUDA="memory=1000000")
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert lines[0].startswith("to: iq1_m of 4096 x 4096 on cuda:0: device_alloc: cuMemAlloc")
    assert "CUDA_ERROR_OUT_OF_MEMORY" in lines[0]
    assert lines[1] == "True"


@pytest.mark.usefixtures("cuda")
def test_devices():
    gpus = [d for d in lutkern.devices() if d.name.startswith("cuda")]
    assert [d.name for d in gpus] == [f"cuda:{i}" for i in range(len(gpus))]
    for device in gpus:
        assert device.available
        assert device.memory_bytes >= device.free_bytes > 0
        assert device.processors > 0
        major, minor = device.capability
        assert f"capability {major}.{minor}, " in device.detail


@pytest.mark.usefixtures("cuda")
def test_info_and_supports():
    found = json.loads(json.dumps(lutkern.info()))
    cuda = found["cuda"]
    assert cuda["absent"] is None
    assert len(cuda["driver"].split(".")) == 2
    assert [d["name"] for d in cuda["devices"]] == [n for n in found["devices"] if n.startswith("cuda:")]
    assert lutkern.supports("iq1_m", "matvec", "cuda") == "matvec_iq1_m"
    assert lutkern.supports("iq1_m", "matmul", "cuda:0", tokens=4) == "matmul_small_iq1_m"
    assert lutkern.supports("iq1_m", "matmul", "cuda") == "matmul_large_iq1_m"
    assert lutkern.supports("iq1_m", "moe", "cuda", tokens=32) == "moe_up_iq1_m"
    assert lutkern.supports("iq1_m", "moe", "cuda", tokens=33) == "moe_up_batch_iq1_m"
    assert lutkern.supports("q4_k", "matvec", "cuda", layout="blocks") == "product_any"
    assert lutkern.supports("q4_k", "matvec", "cuda", layout="tiles") is None
    assert lutkern.supports("iq1_m", "pack", "cuda") is None
    assert cuda["kernels"]["iq2_xs"]["tiles"]["dequantize"] == "dequantize_iq2_xs"
    with pytest.raises(
        ValueError, match=r"^supports: unknown device 'cuda:77', expected one of: cpu, cuda, metal, cuda:0"
    ):
        lutkern.supports("iq1_m", "matvec", "cuda:77")
    with pytest.raises(ValueError, match=r"^supports: tokens is 0, expected 1 to 2147483647$"):
        lutkern.supports("iq1_m", "matmul", "cuda", tokens=0)


@pytest.mark.usefixtures("cuda")
def test_the_command_line_shows_the_devices(capsys):
    from lutkern.cli import main

    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "CUDA driver: " in text
    assert "kernels that would run on cuda:0:" in text
    assert "matvec_iq1_m" in text


@pytest.mark.usefixtures("cuda")
def test_streams_and_events():
    stream = lutkern.Stream("cuda:0")
    assert stream.device == "cuda:0"
    assert repr(stream) == f"Stream(cuda:0, {stream.handle:#x})"
    begin, end = lutkern.Event(), lutkern.Event("cuda:0")
    begin.record(stream)
    y = lutkern.matvec(
        random_tensor(by_name("iq1_m"), (9, 512)).to(device="cuda"), Foreign(np.ones(512, np.float32)), stream=stream
    )
    end.record(stream)
    stream.synchronize()
    assert begin.elapsed(end) >= 0
    del stream
    assert np.isfinite(y.numpy()).all()  # its memory goes back in the order of a stream that must still be there


@pytest.mark.usefixtures("cuda")
def test_a_graph_runs_a_layer_again():
    tensors = [t.to(device="cuda") for t in layer()]
    x, ids, weights = routes(2, 2)
    arrays = [lutkern.to_device(a) for a in (x, ids, weights)]
    y = lutkern.to_device(np.zeros((2, x.shape[1]), np.float32))
    expected = lutkern.moe(*arrays, *tensors).numpy()
    stream = lutkern.Stream()
    lutkern.synchronize()
    with lutkern.capture(stream) as graph:
        lutkern.moe(*arrays, *tensors, out=y, stream=stream)
    assert not y.numpy().any()
    address = arrays[0]._memory.address
    del arrays, tensors  # the graph keeps them
    graph.launch()
    stream.synchronize()
    assert np.array_equal(y.numpy(), expected)
    lutkern._core.copy_in(address, 0x100, 2 * x, 0)
    graph.launch(stream)
    stream.synchronize()
    assert not np.array_equal(y.numpy(), expected)


@pytest.mark.usefixtures("cuda")
def test_what_a_graph_refuses():
    t = random_tensor(by_name("iq1_m"), (9, 512)).to(device="cuda")
    x = np.ones(512, np.float32)
    there = lutkern.to_device(x)
    stream = lutkern.Stream()
    place = "expected an array on cuda:0: every launch of a graph uses the same memory"
    with (
        pytest.raises(ValueError, match=f"^matvec: out is missing while a graph is captured, {place}$"),
        lutkern.capture(stream),
    ):
        lutkern.matvec(t, there, stream=stream)
    with (
        pytest.raises(
            ValueError, match=r"^matvec: x is on the CPU while a graph is captured, expected an array on the device$"
        ),
        lutkern.capture(stream),
    ):
        lutkern.matvec(t, x, stream=stream)
    tensors = [t.to(device="cuda") for t in layer()]
    tokens, ids, weights = routes(2, 2)
    with (
        pytest.raises(ValueError, match=f"^moe: expert_ids is on the CPU while a graph is captured, {place}$"),
        lutkern.capture(stream),
    ):
        lutkern.moe(Foreign(tokens), ids, weights, *tensors, stream=stream)
    parts = [lutkern.split_experts(w, [0, 1, 0, 1, 1]) for w in layer()]
    with (
        pytest.raises(
            ValueError, match=r"^moe: a placement is given while a graph is captured, expected the experts on one"
        ),
        lutkern.capture(stream),
    ):
        lutkern.moe(tokens, ids, weights, *parts, placement=[0, 1, 0, 1, 1], stream=stream)
    with (
        lutkern.capture(stream) as graph,
        pytest.raises(RuntimeError, match=r"^launch: the graph is empty, expected one whose"),
    ):
        graph.launch()
    assert np.isfinite(lutkern.matvec(t, there, stream=stream).numpy()).all()  # the stream works again


BAD = {
    "capture": (
        lambda: lutkern.capture(5).__enter__(),
        TypeError,
        "capture: stream is int, expected a lutkern.Stream",
    ),
    "stream on the CPU": (
        lambda: lutkern.Stream("cpu"),
        ValueError,
        "Stream: device is 'cpu', expected cuda, cuda:N, metal or metal:N",
    ),
    "event": (lambda: lutkern.Event("cuda:99"), RuntimeError, "Event: no device 'cuda:99', the last one is cuda:"),
    "record": (
        lambda: lutkern.Event().record("x"),
        TypeError,
        "record: stream is str, expected a number, or a stream of lutkern, torch or CuPy",
    ),
}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("case", list(BAD))
def test_bad_input(case):
    call, error, text = BAD[case]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)


@pytest.mark.usefixtures("cuda")
def test_a_stream_of_another_device():
    if sum(d.name.startswith("cuda:") for d in lutkern.devices()) < 2:
        pytest.skip("one device")
    t = random_tensor(by_name("iq1_m"), (9, 512)).to(device="cuda:0")
    with pytest.raises(ValueError, match=r"^matvec: stream is on cuda:1, the weight is on cuda:0$"):
        lutkern.matvec(t, np.ones(512, np.float32), stream=lutkern.Stream("cuda:1"))
