"""Check that the object of each instruction set shares one symbol with the rest: its table of kernels.

    python tests/native/check_sealed.py BUILD        BUILD: a CMake build folder; exit status 1 if an object leaks

An inline function or a template that another object also has may be merged by the linker, which keeps any one of them.
If it keeps the one compiled for AVX2, baseline code runs it on a processor without AVX2.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TABLE = re.compile(r"lutkern::k\w+Kernels")
TARGET_FLAG = re.compile(r"-m(?!64$|cmodel|no-|tune)")  # of the compiler: code for more than the ABI floor


def global_symbols(obj: Path) -> list[str]:
    """Return the demangled symbols that an object defines for others, weak and unique ones included."""
    nm = shutil.which("nm")
    if nm is None:
        raise FileNotFoundError("nm, of the binutils")
    run = subprocess.run(
        [nm, "-C", "--defined-only", "--extern-only", str(obj)], capture_output=True, text=True, check=True
    )
    return [line.split(maxsplit=2)[2] for line in run.stdout.splitlines()]


def leaks(obj: Path) -> list[str]:
    """Return the symbols that an instruction set's object defines besides its one table."""
    symbols = global_symbols(obj)
    tables = [s for s in symbols if TABLE.fullmatch(s)]
    return [s for s in symbols if s not in tables[:1]] if tables else [*symbols, "no table of kernels"]


def isa_objects(build: Path) -> Iterator[Path]:
    """Yield the objects of csrc/cpu/ and csrc/pack/ that hold a table, and those compiled for an instruction set."""
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        command = shlex.split(entry["command"])
        obj = Path(entry["directory"]) / command[command.index("-o") + 1]
        has_flags = any(TARGET_FLAG.match(argument) for argument in command)
        in_room = Path(entry["file"]).parts[-3:-1] in (("csrc", "cpu"), ("csrc", "pack"))
        if has_flags or (in_room and any(TABLE.fullmatch(s) for s in global_symbols(obj))):
            yield obj


def main(arguments: list[str]) -> int:
    """Check the objects of a build folder, print one line for each, and return how the program exits."""
    objects = list(isa_objects(Path(arguments[0])))
    found = {obj: leaks(obj) for obj in objects}
    for obj, symbols in found.items():
        print(f"{obj.name}: {'leaks ' + ', '.join(symbols) if symbols else 'sealed'}")
    if not objects:
        print(f"{arguments[0]}: no object of an instruction set")
    return 0 if objects and not any(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
