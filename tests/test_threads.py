"""The pool of threads: the same bits for any number of them, two processes on the same processors, fork, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import lutkern
from weights import by_name, random_tensor

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc or sets affinity")
PROCESSORS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

# What the programs below begin with: a weight that is worth several threads, made by one.
WEIGHT = """
import os, signal, sys, threading, time
import numpy as np
import lutkern
def threads(): return len(os.listdir("/proc/self/task"))
def workers(count):
    "The numbers of the pool's threads: a thread gives itself its name."
    found, end = [], time.monotonic() + 30
    while len(found) < count and time.monotonic() < end:
        found = []
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/comm") as f:
                found += [int(task)] if f.read() == "lutkern\\n" else []
    assert len(found) == count, found
    return found
rng = np.random.default_rng(0)
lutkern.set_num_threads(1)
t = lutkern.pack(rng.standard_normal((512, 1024), np.float32), "q8_0")
lutkern.set_num_threads(None)
x = rng.standard_normal(1024, np.float32)
"""


def run_python(code: str) -> str:
    """Run a program after WEIGHT and return what it printed."""
    command = [sys.executable, "-c", WEIGHT + code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- the same bits ----


@cache
def weights(layout: str) -> tuple[lutkern.PackedTensor, ...]:
    """Return a matrix, and gate, up and down of a layer of four experts."""
    shapes = {"iq2_s": (700, 512), "iq1_m": (4, 512, 256), "iq2_xxs": (4, 512, 256), "iq4_nl": (4, 256, 512)}
    return tuple(random_tensor(by_name(name), shape).to(layout=layout) for name, shape in shapes.items())


def results_of_every_operation(layout: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = (0.1 * rng.standard_normal((5, 512))).astype(np.float32)
    t, *layer = weights(layout)
    ids, route = rng.integers(0, 4, (5, 2)), rng.random((5, 2), np.float32)
    return {
        "dequantize": lutkern.dequantize(t),
        "matvec": lutkern.matvec(t, x[0]),
        "matvec, exact": lutkern.matvec(t, x[0], exact=True),
        "matmul": lutkern.matmul(t, x),
        "matmul, exact": lutkern.matmul(t, x, exact=True),
        "moe": lutkern.moe(x[:, :256], ids, route, *layer),
        "moe, one token": lutkern.moe(x[:1, :256], ids[:1], route[:1], *layer),
        "pack": lutkern.pack(x, "iq1_m", effort="fast").blocks(),
        "to tiles": weights("blocks")[0].tiles(),
        "to blocks": weights("tiles")[0].blocks(),
    }


def test_any_number_of_threads_gives_the_same_bits(isa: str, layout: str, all_threads: None) -> None:
    lutkern.set_num_threads(1)
    alone = results_of_every_operation(layout)
    for threads in range(2, 9):
        lutkern.set_num_threads(threads)
        for operation, result in results_of_every_operation(layout).items():
            assert result.tobytes() == alone[operation].tobytes(), (operation, threads)


# ---- two processes on the same processors ----

COUNT = """
processors = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, processors)
lutkern.set_num_threads(2)
done = np.memmap(sys.argv[1], np.int64, "r+")
while True:
    lutkern.matvec(t, x)
    done[0] += 1
"""


class Counting:
    """A process that runs one operation after another, and can be stopped."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(8))
        self.done = np.memmap(path, np.int64, "r")
        self.process = subprocess.Popen([sys.executable, "-c", WEIGHT + COUNT, str(path)])

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def go(self, on: bool) -> None:
        self.process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)


def speeds(processes: Sequence[Counting], running: Sequence[Counting]) -> list[float]:
    """Let some of the processes run and stop the others; return how many operations a second each one does."""
    for process in processes:
        process.go(process in running)
    time.sleep(0.01)
    before, start = [int(p.done[0]) for p in processes], time.perf_counter()
    time.sleep(0.1)
    seconds = time.perf_counter() - start
    return [(int(p.done[0]) - n) / seconds for p, n in zip(processes, before, strict=True)]


@linux
def test_two_processes_share_two_processors(tmp_path: Path) -> None:
    """Threads that wait must not keep the other process from working: each has at least 40 % of its speed alone.

    One second of each is put together from short turns: whatever else the machine does slows all of them.
    """
    with Counting(tmp_path / "a") as a, Counting(tmp_path / "b") as b:
        end = time.monotonic() + 60
        while min(a.done[0], b.done[0]) == 0 and time.monotonic() < end:
            time.sleep(0.01)
        tries = []
        while len(tries) < 4 and max(tries, default=0) < 0.4:
            turns = [[speeds((a, b), running) for running in ((a,), (a, b), (b,))] for _ in range(10)]
            (alone_a, _), together, (_, alone_b) = np.sum(turns, axis=0)
            tries.append(min(together[0] / alone_a, together[1] / alone_b))
        assert max(tries) >= 0.4, tries


# ---- fork ----


@linux
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    run_python("""
lutkern.set_num_threads(3)
expected = lutkern.matvec(t, x)
assert threads() > 1
child = os.fork()
assert np.array_equal(lutkern.matvec(t, x), expected)
if child == 0:
    grandchild = os.fork()
    good = np.array_equal(lutkern.matvec(t, x), expected) and threads() == 3
    if grandchild == 0:
        os._exit(0 if good else 1)
    os._exit(0 if good and os.waitpid(grandchild, 0)[1] == 0 else 1)
sys.exit(os.waitpid(child, 0)[1] != 0)
""")


@linux
@pytest.mark.parametrize("count", [2, 5])
def test_fork_while_another_thread_is_inside_an_operation(count: int) -> None:
    run_python(f"""
lutkern.set_num_threads({count})
expected = lutkern.matvec(t, x)
rows = rng.standard_normal((64, 1024), np.float32)
stop = threading.Event()
wrong = []
def operate():
    products = lutkern.matmul(t, rows)
    while not stop.is_set():
        if not np.array_equal(lutkern.matmul(t, rows), products):
            wrong.append(None)
others = [threading.Thread(target=operate) for _ in range(2)]
for other in others: other.start()
statuses = []
for i in range(40):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if np.array_equal(lutkern.matvec(t, x), expected) and threads() == {count} else 1)
    statuses.append(os.waitpid(child, 0)[1])
    time.sleep(0.0003 * (i % 7))
stop.set()
for other in others: other.join()
assert statuses == [0] * 40 and not wrong, (statuses, len(wrong))
""")


@linux
def test_fork_while_another_thread_is_in_its_first_operation() -> None:
    """What a first operation makes for all later ones is half-made in the child, where nobody goes on with it."""
    run_python("""
names = [f.name for f in lutkern.formats() if f.name.startswith("iq")]
row = rng.standard_normal((1, 256), np.float32)
def operate():
    for name in names:
        lutkern.pack(row, name, effort="fast")
def race(delay):
    child = os.fork()  # where no format but q8_0 was packed
    if child:
        return os.waitpid(child, 0)[1]
    end = time.perf_counter() + delay
    threading.Thread(target=operate).start()
    while time.perf_counter() < end: pass
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(10)
        operate()
        os._exit(0)
    os._exit(os.waitpid(grandchild, 0)[1] != 0)
assert not any(race(2e-5 * i) for i in range(80))
""")


def test_nothing_waits_for_the_guard_of_a_static() -> None:
    """A child of fork would find it held by a thread that it does not have: csrc/once.h."""
    assert b"__cxa_guard_acquire" not in Path(lutkern.get_library()).read_bytes()


# ---- where threads run ----

# Like WEIGHT, where a thread has pinned itself to one processor of several.
PINNED = """
whole = os.sched_getaffinity(0)
one = {min(whole)}
def in_a_pinned_thread(body):
    def run():
        os.sched_setaffinity(0, one)
        body()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert os.sched_getaffinity(0) == whole
def reaches(task, mask, seconds=30):
    end = time.monotonic() + seconds
    while os.sched_getaffinity(task) != mask and time.monotonic() < end:
        lutkern.matvec(t, x)
    return os.sched_getaffinity(task) == mask
"""
several = pytest.mark.skipif(PROCESSORS < 2, reason="with one processor all masks are the same")


@linux
@several
def test_workers_that_a_pinned_thread_starts_are_not_pinned() -> None:
    run_python(
        PINNED
        + """
lutkern.set_num_threads(4)
in_a_pinned_thread(lambda: lutkern.matvec(t, x))
assert all(reaches(task, whole) for task in workers(3))
"""
    )


@linux
@several
def test_a_pinned_thread_does_not_decide_how_many_there_are() -> None:
    run_python(
        PINNED
        + """
counts = []
in_a_pinned_thread(lambda: (lutkern.set_num_threads(None), counts.append(lutkern.num_threads())))
assert counts == [lutkern.num_threads()]
lutkern.set_num_threads(None)
assert counts == [lutkern.num_threads()]
"""
    )


@linux
@several
def test_workers_are_free_again_with_the_main_thread() -> None:
    """What the main thread may do is the process's: pinned at first, free later."""
    run_python(
        PINNED
        + """
lutkern.set_num_threads(3)
os.sched_setaffinity(0, one)
lutkern.matvec(t, x)
assert all(reaches(task, one) for task in workers(2))
os.sched_setaffinity(0, whole)
assert all(reaches(task, whole) for task in workers(2))
"""
    )


@linux
@several
def test_a_main_thread_that_pins_itself_later_takes_no_worker_along() -> None:
    run_python(
        PINNED
        + """
lutkern.set_num_threads(3)
lutkern.matvec(t, x)
assert all(reaches(task, whole) for task in workers(2))
os.sched_setaffinity(0, one)
assert not any(reaches(task, one, 0.2) for task in workers(2))
"""
    )


@linux
@several
def test_a_worker_keeps_the_mask_that_somebody_gives_it() -> None:
    run_python(
        PINNED
        + """
lutkern.set_num_threads(2)
lutkern.matvec(t, x)
[worker] = workers(1)
assert reaches(worker, whole)
os.sched_setaffinity(worker, one)
assert not reaches(worker, whole, 0.3)
"""
    )


# ---- the threads themselves ----


@linux
def test_an_interrupt_waits_for_the_operation() -> None:
    """KeyboardInterrupt comes when the call has ended, with its result; the next call works."""
    run_python("""
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
lutkern.set_num_threads(3)
rows = rng.standard_normal((3000, 1024), np.float32)
expected = lutkern.matmul(t, rows)
def interrupt(out):
    end = time.monotonic() + 30
    while not out.any() and time.monotonic() < end: pass  # until the operation is at work
    os.kill(os.getpid(), signal.SIGINT)
for _ in range(5):
    out = np.zeros_like(expected)
    other = threading.Thread(target=interrupt, args=(out,))
    try:
        other.start()
        lutkern.matmul(t, rows, out=out)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    else:
        sys.exit("no interrupt came")
    other.join()
    assert np.array_equal(out, expected)
    assert np.array_equal(lutkern.matmul(t, rows), expected)
workers(2)
""")


@linux
def test_workers_leave_signals_to_the_program() -> None:
    run_python("""
lutkern.set_num_threads(4)
lutkern.matvec(t, x)
def is_blocked(mask, number): return bool(mask >> (number - 1) & 1)
for task in workers(3):
    with open(f"/proc/self/task/{task}/status") as f:
        lines = dict(line.rstrip().split(":", 1) for line in f)
    mask = int(lines["SigBlk"], 16)
    assert all(is_blocked(mask, s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM))
    assert not any(is_blocked(mask, s) for s in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
""")


@linux
@pytest.mark.skipif(PROCESSORS < 2, reason="on one processor no thread spins")
def test_a_waiting_thread_parks() -> None:
    """Kept off the main thread's processor, the worker spins after each call, but not for long."""
    run_python("""
lutkern.set_num_threads(2)
lutkern.matvec(t, x)
[worker] = workers(1)
processors = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, processors[:1])
os.sched_setaffinity(worker, processors[1:])
def processor_seconds():
    with open(f"/proc/self/task/{worker}/schedstat") as f:
        return int(f.read().split()[0]) / 1e9
used = 0
for _ in range(5):
    for _ in range(20):
        lutkern.matvec(t, x)
    before = processor_seconds()
    time.sleep(0.1)
    used += processor_seconds() - before
assert used < 0.02, used
""")


@linux
def test_threads_that_are_no_longer_wanted_park() -> None:
    """The program works on with one thread beside the main one; the others must not spin along."""
    run_python("""
lutkern.set_num_threads(6)
lutkern.matvec(t, x)
lutkern.set_num_threads(2)
time.sleep(0.1)
def processor_seconds():
    used = {}
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/schedstat") as f:
            used[task] = int(f.read().split()[0]) / 1e9
    return used
before = processor_seconds()
end = time.perf_counter() + 0.5
while time.perf_counter() < end:
    lutkern.matvec(t, x)
used = [after - before[task] for task, after in processor_seconds().items()]
assert len(used) >= 6 and sum(u > 0.005 for u in used) <= 2, used
""")


@linux
def test_without_new_threads_the_caller_works_alone() -> None:
    run_python("""
import resource
expected = lutkern.matvec(t, x)
lutkern.set_num_threads(1)
at_first = threads()
if os.getuid() == 0:
    os.setuid(65534)  # limits do not bind root
resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
lutkern.set_num_threads(lutkern.num_threads() + 7)
for _ in range(3):
    assert np.array_equal(lutkern.matvec(t, x), expected)
assert threads() == at_first, "the limit did not bind"
""")
