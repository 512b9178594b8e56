"""What runs: dispatch, environment variables, threads, fork, the shape of info."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import lutkern
from weights import by_name, random_tensor


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


def test_isas_end_with_scalar():
    assert lutkern.isas()[-1] == "scalar"
    assert lutkern.info()["isa"] == lutkern.isas()[0]


def test_use_isa_is_what_runs(isa):
    assert lutkern.info()["isa"] == isa
    for fmt in lutkern.formats():
        assert lutkern.supports(fmt, "dequantize").endswith(("_scalar", f"_{isa}"))


# The row that runs tiles and packs, where the one in use has neither.
NEXT = {"avx512": "avx2"}


def test_a_format_without_a_kernel_takes_the_next_row_down():
    lutkern.use_isa("scalar")
    assert lutkern.supports("iq1_m", "matvec", layout="blocks") == "gemv_iq1_m_blocks_scalar"
    lutkern.use_isa(None)
    best = lutkern.isas()[0]
    assert lutkern.supports("iq1_m", "matvec") == f"gemv_iq1_m_tiles_{NEXT.get(best, best)}"
    assert lutkern.supports("iq1_m", "moe", layout="blocks") == f"gemm_iq1_m_blocks_{best}"
    assert lutkern.supports("iq1_m", "pack", "metal") is None


def test_a_row_without_quantisers_takes_those_of_the_next_row_down(isa):
    assert lutkern.supports("q3_k", "pack") == f"pack_q3_k_{NEXT.get(isa, isa)}"


@pytest.mark.parametrize("name", ["avx1024", "", "Scalar"])
def test_unknown_isa(name):
    with pytest.raises(ValueError, match=f"use_isa: unknown ISA '{name}', expected one of: .*scalar"):
        lutkern.use_isa(name)


def test_isa_that_is_no_text():
    with pytest.raises(TypeError, match=r"^use_isa: name is int, expected a str or None$"):
        lutkern.use_isa(5)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"supports: unknown operation \[\], expected one of: dequantize, matvec, "):
        lutkern.supports("iq1_m", [])
    with pytest.raises(ValueError, match="supports: unknown operation 'dot', expected one of: dequantize, matvec, "):
        lutkern.supports("iq1_m", "dot")
    with pytest.raises(ValueError, match="supports: unknown device 'npu', expected one of: cpu, cuda, metal"):
        lutkern.supports("iq1_m", "matvec", "npu")
    with pytest.raises(ValueError, match="supports: unknown layout 'rows', expected one of: blocks, tiles"):
        lutkern.supports("iq1_m", "matvec", layout="rows")


def test_environment_chooses_the_isa(isa):
    result = run_python("import lutkern; print(lutkern.info()['isa'])", LUTKERN_ISA=isa)
    assert result.stdout.strip() == isa


OPERATION = (
    "import lutkern, numpy as np; lutkern.dequantize(lutkern.PackedTensor.from_blocks(bytes(34), 'q8_0', (1, 32)))"
)
SELFTEST = "from lutkern import selftest; selftest.run()"


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("LUTKERN_ISA", "sse9", "ValueError: LUTKERN_ISA: unknown ISA 'sse9', expected one of: "),
        (
            "LUTKERN_NUM_THREADS",
            "many",
            "ValueError: LUTKERN_NUM_THREADS: got 'many', expected a number from 1 to 1024",
        ),
        ("LUTKERN_NUM_THREADS", "0", "ValueError: LUTKERN_NUM_THREADS: got '0', expected a number from 1 to 1024"),
    ],
)
@pytest.mark.parametrize(
    "code", [OPERATION, SELFTEST, "import lutkern; lutkern.info()"], ids=["operation", "selftest", "info"]
)
def test_a_wrong_environment_is_an_error_of_the_first_operation(variable, value, text, code):
    result = run_python(code, **{variable: value})
    assert result.returncode == 1
    assert text in result.stderr


def test_the_program_can_overrule_a_wrong_environment():
    wrong = {"LUTKERN_ISA": "sse9", "LUTKERN_NUM_THREADS": "many"}
    chosen = OPERATION.replace("import lutkern, numpy as np;", "import lutkern; lutkern.use_isa('scalar');")
    assert "LUTKERN_NUM_THREADS: got 'many'" in run_python(chosen, **wrong).stderr
    chosen = chosen.replace("use_isa('scalar');", "use_isa('scalar'); lutkern.set_num_threads(1);")
    assert run_python(chosen, **wrong).returncode == 0


def test_environment_chooses_the_threads():
    assert run_python("import lutkern; print(lutkern.num_threads())", LUTKERN_NUM_THREADS="3").stdout.strip() == "3"


def test_the_default_is_the_processors_of_the_process():
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{one}; import lutkern; print(lutkern.num_threads())"
    assert run_python(code, LUTKERN_NUM_THREADS="").stdout.strip() == "1"


def test_set_num_threads(all_threads):
    lutkern.set_num_threads(3)
    assert lutkern.num_threads() == 3
    lutkern.set_num_threads(None)
    assert lutkern.num_threads() >= 1
    for wrong in (0, -1, 1025, 2**40):
        with pytest.raises(ValueError, match=f"^set_num_threads: threads is {wrong}, expected 1 to 1024$"):
            lutkern.set_num_threads(wrong)
    with pytest.raises(TypeError, match=r"^set_num_threads: threads is float, expected a whole number$"):
        lutkern.set_num_threads(2.5)


def test_import_starts_no_thread_and_no_thread_survives_a_fork():
    code = """
import os, sys
import numpy as np
def threads(): return len(os.listdir('/proc/self/task'))
before = threads()
import lutkern
assert threads() == before, 'import started a thread'
lutkern.set_num_threads(4)
t = lutkern.PackedTensor.from_blocks(bytes(34 * 16 * 4096), 'q8_0', (4096, 512))
x = np.ones(512, np.float32)
lutkern.matvec(t, x)
assert threads() > before, 'no thread was started'
child = os.fork()
lutkern.matvec(t, x)
if child == 0:
    os._exit(0 if threads() > 1 and not lutkern.matvec(t, x).any() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_operations_from_many_threads_at_once():
    t = random_tensor(by_name("iq2_xs"), (700, 512))
    x = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    expected = [lutkern.matvec(t, row) for row in x]
    wrong = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(lutkern.matvec(t, x[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_gil_is_free_while_kernels_run():
    """A second Python thread counts while one long operation runs: with the GIL held it could not."""
    t = random_tensor(by_name("iq1_m"), (64, 4096))
    x = np.zeros((2048, 4096), np.float32)
    counted = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted.append(None)
            stop.wait(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    while not counted:
        stop.wait(0.001)
    before = len(counted)
    lutkern.matmul(t, x)
    during = len(counted) - before
    stop.set()
    thread.join()
    assert during >= 3


def test_info_and_devices():
    info = json.loads(json.dumps(lutkern.info()))
    assert list(info["formats"]) == [f.name for f in lutkern.formats()]
    assert info["devices"]["cpu"]["available"]
    for kind, number in (("cuda", 0x100), ("metal", 0x200)):
        absent = lutkern._core.device_absent(number)
        found = {name: device for name, device in info["devices"].items() if name.startswith(kind)}
        assert next(iter(found)) == (f"{kind}:0" if absent is None else kind)
        assert absent is None or found[kind] == {"available": False, "detail": absent}
        assert info[kind]["absent"] == absent
    assert {d.name.partition(":")[0] for d in lutkern.devices()} == {"cpu", "cuda", "metal"}
    assert os.path.exists(lutkern.get_library())
    assert os.path.exists(os.path.join(lutkern.get_include(), "lutkern.h"))


def test_formats_know_their_sizes():
    assert len(lutkern.formats()) == 25
    assert [f.bits_per_weight for f in lutkern.formats()[:3]] == [1.5625, 1.75, 2.0625]
    for fmt in lutkern.formats():
        assert fmt.row_bytes(257) == (-(-257 // fmt.block_size)) * fmt.block_bytes
        assert lutkern._core.row_bytes(fmt.ggml_type, 257) == fmt.row_bytes(257)
