"""The README's Python runs as printed, and its format table is the truth."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lutkern

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_examples():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md block {number}", "exec"), {})


def test_the_commands_for_c(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("this machine has no C compiler named cc")
    (commands,) = re.findall(r"```\n(include=.*?)```", README, flags=re.DOTALL)
    shutil.copy(Path(__file__).parent / "native" / "example.c", tmp_path)
    script = f'python() {{ "{sys.executable}" "$@"; }}\nset -e\n{commands}./example'
    result = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.stderr == ""
    assert result.stdout.endswith(" rows agree\n")


def test_the_layout_table():
    rows = dict(re.findall(r"^\| `(\w+)` \| [\d.]+ \| ([\d.]+) \|$", README, flags=re.MULTILINE))
    for fmt in lutkern.formats():
        data = np.zeros((16, fmt.row_bytes(1024)), np.uint8)
        tiles = lutkern.PackedTensor.from_blocks(data, fmt, (16, 1024)).to(layout="tiles")
        assert tiles.bits_per_weight == float(rows.pop(fmt.name, fmt.bits_per_weight))
    assert not rows


def test_the_format_table():
    rows = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            for name in re.findall(r"`(\w+)`", cells[0]):
                rows[name] = cells
    assert list(rows) == [f.name for f in lutkern.formats()]
    for fmt in lutkern.formats():
        bits, packs = rows[fmt.name][1], rows[fmt.name][2]
        assert float(bits) == fmt.bits_per_weight
        assert packs == ("yes" if fmt.can_pack else "")
