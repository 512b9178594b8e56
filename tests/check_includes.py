"""Check who includes whom in csrc/: the order in which the rooms of the library depend on each other.

python tests/check_includes.py [CSRC]        one line for each violation; exit status 1 if there is one

formats/                       its own room
pack/ tiles/ gpu/              formats/, their own room, tensor.h, parallel.h, once.h
cpu/                           the same and tiles/
cuda/ metal/                   formats/, gpu/, their own room, backend.h, tensor.h, parallel.h, once.h; in cuda/ no
                               header of the CUDA toolkit, whose nvcc brings what kernels need, and whose driver is
                               loaded at run time
*.metal                        of system headers metal_stdlib alone, which only they and formats/port.h include
api.cpp api_device.cpp         everything of ours; what they share: boundary.h
bindings/                      its own room, lutkern.h; the only place for Python, NumPy, pybind11 and Torch headers
cpu/<instruction set>.cpp      the only place for headers of intrinsics; here and in pack/<instruction set>.cpp no other
                               system header
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
SUFFIXES = {".h", ".c", ".cpp", ".cu", ".cuh", ".mm", ".metal", ".inc"}
ROOMS = ("pack", "tiles", "gpu")
SHARED = {"tensor.h", "parallel.h", "once.h"}
# What may be included, as a room or as a file of the top; None: everything of ours.
ALLOWED: dict[str, set[str] | None] = {
    "formats": {"formats"},
    **{room: {"formats", room} | SHARED for room in ROOMS},
    "cpu": {"formats", "tiles", "cpu"} | SHARED,
    **{room: {"formats", "gpu", room, "backend.h"} | SHARED for room in ("cuda", "metal")},
    "bindings": {"bindings", "lutkern.h"},
    "api.cpp": None,
    "api_device.cpp": None,
    "boundary.h": None,
    "backend.h": {"cpu/operations.h", "lutkern.h"} | SHARED,
    "lutkern.h": set(),
    "once.h": set(),
    "parallel.h": set(),
    "tensor.h": {"formats"},
}
# Words of the kernels for a compiler that is not nvcc; whoever builds the simulator says where they are.
ELSEWHERE = {("cuda/machine.h", "cuda_spelling.h")}
INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|import)[ \t]*([<"])([^>"]+)[>"]', re.MULTILINE)
INTRINSICS = re.compile(r"\w*intrin\.h|arm_\w+\.h")
FOREIGN = re.compile(r"(pybind11|numpy|torch|ATen|c10|nanobind)/|Python\.h$|pyconfig\.h$")
TOOLKIT = re.compile(
    r"(cuda|cub|cooperative_groups|thrust|nv|cutlass)\w*(/.*|\.h|\.hpp)|(mma|vector_types|device_\w+)\.h"
)
METAL = "metal_stdlib"
KERNEL_TABLE = re.compile(r"\b(?:Block|Tile|Pack)Kernels k\w+Kernels = ")


def violations(csrc: Path) -> Iterator[str]:
    """Yield one line for each include that breaks a rule."""
    for path in sorted(p for p in csrc.rglob("*") if p.suffix in SUFFIXES):
        text = path.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            place = f"{path.relative_to(csrc)}:{text.count(chr(10), 0, match.start()) + 1}"
            check = _own if match[1] == '"' else _system
            for problem in check(csrc, path, match[2], text):
                yield f"{place}: includes {match[2]}, {problem}"


def _room(csrc: Path, path: Path) -> str:
    return path.relative_to(csrc).parts[0]


def _own(csrc: Path, path: Path, name: str, _text: str) -> Iterator[str]:
    if (path.relative_to(csrc).as_posix(), name) in ELSEWHERE:
        return
    target = (path.parent / name).resolve()
    if not target.is_file() or csrc.resolve() not in target.parents:
        yield "which is no file of csrc/ beside it"
        return
    room = _room(csrc, path)
    if room not in ALLOWED:
        yield f"but no rule names {room}"
        return
    allowed = ALLOWED[room]
    file = target.relative_to(csrc.resolve())
    if allowed is not None and allowed.isdisjoint({file.parts[0], file.as_posix()}):
        yield f"but {room} may include only: {', '.join(sorted(allowed)) or 'nothing of ours'}"


def _system(csrc: Path, path: Path, name: str, text: str) -> Iterator[str]:
    room = _room(csrc, path)
    if FOREIGN.match(name) and room != "bindings":
        yield "which belongs into bindings/"
    if TOOLKIT.fullmatch(name):
        yield "which is the CUDA toolkit's"
    is_metal = path.suffix == ".metal"
    if is_metal and name != METAL:
        yield "which is not Metal's"
    elif name == METAL and not is_metal and path.name != "port.h":
        yield "which belongs into a .metal file, or into formats/port.h"
    is_isa = path.suffix == ".cpp" and KERNEL_TABLE.search(text) is not None
    is_intrinsics = INTRINSICS.fullmatch(name) is not None
    if is_intrinsics and not (is_isa and room == "cpu"):
        yield "which belongs into a file of cpu/ with a table of kernels"
    if is_isa and not is_intrinsics:
        yield "but a file with a table of kernels may include only intrinsics and our own headers"


def main(arguments: list[str]) -> int:
    """Print the violations below a folder and return how the program exits."""
    found = list(violations(Path(arguments[0]) if arguments else CSRC))
    print("\n".join(found) if found else "includes: every rule is kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
