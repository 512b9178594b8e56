"""Write the Metal kernels as one source: kernels.metal with what it includes in place, each file once.

    python csrc/metal/amalgamate.py OUT                  write the source to the file OUT
    python csrc/metal/amalgamate.py OUT --embed CPP      and C++ that has it as kKernelText (text.h)

What only C++ or CUDA reads is left out: branches of #if defined(...) that ask for the language. #line tells the
compiler where a line comes from. A library is this source behind a few macros (kernels.h): library_text().
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

METAL = Path(__file__).resolve().parent
CSRC = METAL.parent
HOST_ONLY = re.compile(r"text\.h|(\w+_)?plans?\.h")

# Macros that tell languages apart, and whether Metal defines them
LANGUAGE = {"__METAL_VERSION__": True, "__CUDACC__": False}
INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
ASKS = re.compile(r"\s*#\s*(?:if\s+(!?)\s*defined\((\w+)\)|if(n?)def\s+(\w+))\s*(?://.*)?$")
DIRECTIVE = re.compile(r"\s*#\s*(if|ifdef|ifndef|else|elif|endif|pragma once)\b")
CHUNK = 8192


class Amalgamation:
    """Lines of output, and the files that are in it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: set[Path] = set()

    def add(self, path: Path) -> None:
        """Add a file and what it includes."""
        if path in self.seen:
            return
        self.seen.add(path)
        name = path.relative_to(CSRC).as_posix()
        branches: list[bool | None] = []  # of each open #if: whether it is wanted; None: for the compiler to say
        expected = 0  # line that would be next in the output
        for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
            if not self._wanted(line, branches):
                continue
            include = INCLUDE.match(line)
            if include:
                self.add(self._included(path, number, include[1]))
                continue
            if number != expected:
                if expected and not line.strip():
                    continue
                self.lines.append(f'#line {number} "{name}"')
            self.lines.append(line.rstrip())
            expected = number + 1
        if branches:
            raise ValueError(f"amalgamate: {name} ends inside of #if")

    @staticmethod
    def _wanted(line: str, branches: list[bool | None]) -> bool:
        """Whether Metal reads a line; follow the directives that ask for the language."""
        directive = DIRECTIVE.match(line)
        kind = directive[1] if directive else ""
        if kind.startswith("if"):
            asks = ASKS.match(line)
            macro = (asks[2] or asks[4]) if asks else ""
            negated = bool(asks and (asks[1] or asks[3]))
            branches.append(LANGUAGE[macro] != negated if macro in LANGUAGE else None)
            return branches[-1] is None and False not in branches
        if kind in ("else", "elif") and branches[-1] is not None:
            if kind == "elif":
                raise ValueError(f"amalgamate: {line.strip()} after a question for the language, expected #else")
            branches[-1] = not branches[-1]
            return False
        if kind == "endif":
            return branches.pop() is None and False not in branches
        return kind != "pragma once" and False not in branches

    @staticmethod
    def _included(path: Path, number: int, name: str) -> Path:
        found = (path.parent / name).resolve()
        place = f"{path.relative_to(CSRC).as_posix()}:{number}"
        if not found.is_file() or CSRC not in found.parents:
            raise ValueError(f"amalgamate: {place} includes {name}, which is no file of csrc/ beside it")
        if found.parent == METAL and HOST_ONLY.fullmatch(found.name):
            raise ValueError(f"amalgamate: {place} includes {name}, which is for C++ only")
        return found


def kernel_text() -> str:
    """Return the source of all kernels."""
    out = Amalgamation()
    out.add(METAL / "kernels.metal")
    return "\n".join(out.lines) + "\n"


def library_text(**macros: int | str) -> str:
    """Return the text of the library for these macros, such as LK_TILES=1, LK_WEIGHT="Iq1S"."""
    return "".join(f"#define {name} {value}\n" for name, value in macros.items()) + kernel_text()


def embedded(text: str) -> str:
    """Return C++ that defines the arrays of text.h; string literals of a few kilobytes suit every compiler."""
    delimiter = "metal"
    if f"){delimiter}" in text:
        raise ValueError(f"amalgamate: the text has ){delimiter}")
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    literals = "\n".join(f'R"{delimiter}({chunk}){delimiter}"' for chunk in chunks)
    return (
        '// Made by csrc/metal/amalgamate.py.\n#include "metal/text.h"\n\n'
        "namespace lutkern {\nnamespace metal {\n\n"
        f"extern const char kKernelText[] =\n{literals};\n"
        "extern const size_t kKernelTextBytes = sizeof(kKernelText) - 1;\n\n"
        "}  // namespace metal\n}  // namespace lutkern\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the files; return the exit status."""
    parser = argparse.ArgumentParser(description="Write the Metal kernels as one source.")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--embed", type=Path, metavar="CPP", help="write it as C++ too")
    options = parser.parse_args(arguments)
    try:
        text = kernel_text()
        options.out.write_text(text, encoding="ascii", newline="\n")
        if options.embed:
            options.embed.write_text(embedded(text), encoding="ascii", newline="\n")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
