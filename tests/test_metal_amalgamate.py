"""The Metal kernels as one source: what is inlined, what is left out, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

METAL = Path(__file__).resolve().parent.parent / "csrc" / "metal"
sys.path.insert(0, str(METAL))
import amalgamate  # noqa: E402


def test_only_the_library_of_metal_is_left_to_include():
    text = amalgamate.kernel_text()
    assert re.findall(r"#\s*include\s*(\S+)", text) == ["<metal_stdlib>"]
    assert "pragma once" not in text
    assert "__CUDACC__" not in text
    assert text == amalgamate.kernel_text()


def test_every_file_of_kernels_is_in_the_text_once():
    text = amalgamate.kernel_text()
    for path in METAL.glob("*.metal"):
        assert text.count(f'#line 1 "metal/{path.name}"\n') == 1


def test_lines_are_those_of_the_files():
    """Every #line names the line that follows it."""
    lines = amalgamate.kernel_text().splitlines()
    for at, line in enumerate(lines):
        place = re.fullmatch(r'#line (\d+) "(.+)"', line)
        if place is not None and not lines[at + 1].startswith("#line"):
            source = (METAL.parent / place[2]).read_text(encoding="ascii").splitlines()
            assert lines[at + 1] == source[int(place[1]) - 1].rstrip()


def test_macros_stand_in_front():
    text = amalgamate.library_text(LK_TILES=1, LK_WEIGHT="Iq1S")
    assert text == "#define LK_TILES 1\n#define LK_WEIGHT Iq1S\n" + amalgamate.kernel_text()


def test_the_command_writes_the_text_and_cpp_that_has_it(tmp_path):
    out, cpp = tmp_path / "kernels.metal", tmp_path / "text.cpp"
    assert amalgamate.main([str(out), "--embed", str(cpp)]) == 0
    assert out.read_text(encoding="ascii") == amalgamate.kernel_text()
    chunks = re.findall(r'R"metal\((.*?)\)metal"', cpp.read_text(encoding="ascii"), re.S)
    assert "".join(chunks) == amalgamate.kernel_text()
    assert max(map(len, chunks)) < 65536  # what every compiler takes


def test_text_that_ends_a_literal_is_refused():
    with pytest.raises(ValueError, match=r"amalgamate: the text has \)metal"):
        amalgamate.embedded("(comment)metal")


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ('#include "missing.h"\n', r"amalgamate: metal/kernels.metal:1 includes missing.h, which is no file of csrc/"),
        ('\n#include "plan.h"\n', r"amalgamate: metal/kernels.metal:2 includes plan.h, which is for C\+\+ only"),
        ("#if defined(__METAL_VERSION__)\n", r"amalgamate: metal/kernels.metal ends inside of #if"),
        (
            "#if defined(__CUDACC__)\n#elif LK_TILES\n#endif\n",
            r"amalgamate: #elif LK_TILES after a question for the language, expected #else",
        ),
    ],
    ids=["missing", "host_only", "open", "elif"],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, capsys, kernels, message):
    metal = tmp_path / "metal"
    metal.mkdir()
    shutil.copy(METAL / "plan.h", metal)
    (metal / "kernels.metal").write_text(kernels, encoding="ascii")
    monkeypatch.setattr(amalgamate, "CSRC", tmp_path)
    monkeypatch.setattr(amalgamate, "METAL", metal)
    with pytest.raises(ValueError, match=message):
        amalgamate.kernel_text()
    assert amalgamate.main([str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_branches_of_languages_are_resolved(tmp_path, monkeypatch):
    (tmp_path / "metal").mkdir()
    (tmp_path / "metal" / "kernels.metal").write_text(
        "#if defined(__METAL_VERSION__)\nmetal\n#if LK_TILES\ntiles\n#endif\n#else\nhost\n#endif\n"
        "#ifndef __METAL_VERSION__\nhost\n#endif\n#if !defined(__CUDACC__)\nboth\n#else\ncuda\n#endif\n",
        encoding="ascii",
    )
    monkeypatch.setattr(amalgamate, "CSRC", tmp_path)
    monkeypatch.setattr(amalgamate, "METAL", tmp_path / "metal")
    kept = [line for line in amalgamate.kernel_text().splitlines() if not line.startswith("#line")]
    assert kept == ["metal", "#if LK_TILES", "tiles", "#endif", "both"]
