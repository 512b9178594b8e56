"""Operations of the Metal kernels: what their text says of itself is what clang makes of it."""

from __future__ import annotations

import re

import pytest

from metal_launch import TILE_FORMATS, block_types
from sim.metal import count_any
from sim.metal.count import METAL, MOVES, few_tokens, per_codeword, unpacking

# Versions of clang differ in a few shifts.
SLACK = 0.3


def stated() -> dict[str, float]:
    """The column `together` of the table in dot.metal."""
    text = (METAL / "dot.metal").read_text(encoding="ascii")
    rows = re.findall(r"^//   (iq\w+) +\d+ +\d+ +\d+ +[\d.]+ +[\d.]+ +([\d.]+) ", text, re.MULTILINE)
    return {name: float(number) for name, number in rows}


def test_every_format_has_a_count():
    assert set(stated()) == set(TILE_FORMATS)
    assert {name.replace("_", "") for name in stated()} == {name.lower() for name in MOVES}


@pytest.mark.parametrize("tiled", TILE_FORMATS)
def test_operations_for_a_codeword(tiled):
    block = next(name for name in MOVES if name.lower() == tiled.replace("_", ""))
    assert abs(per_codeword(block) - stated()[tiled]) <= SLACK


def panels() -> str:
    return (METAL / "panels.metal").read_text(encoding="ascii")


@pytest.mark.parametrize("tiled", TILE_FORMATS)
def test_operations_that_unpack_32_columns(tiled):
    block = next(name for name in MOVES if name.lower() == tiled.replace("_", ""))
    numbers = dict(re.findall(r"(iq\w+) (\d+)", panels().split("//   unpack   ")[1].split("\n")[0]))
    assert set(numbers) == set(TILE_FORMATS)
    assert abs(unpacking(block) - int(numbers[tiled])) <= 8 * SLACK


@pytest.mark.parametrize("tokens", [2, 4])
def test_operations_of_few_tokens_of_an_expert(tokens):
    assert f"{few_tokens(tokens)} for {tokens} tokens" in panels()


def stated_of_any() -> list[tuple[str, float]]:
    """The line of figures of any.metal."""
    text = (METAL / "any.metal").read_text(encoding="ascii")
    line = re.search(r"^//(   [a-z0-9_]+ \d+){4,}$", text, re.MULTILINE)
    assert line is not None
    return [(name, float(number)) for name, number in re.findall(r"(\w+) (\d+)", line[0])]


@pytest.mark.parametrize(("name", "stated"), stated_of_any())
def test_operations_of_the_generic_kernels(name, stated):
    assert abs(count_any.per_codeword(block_types()[name]) - stated) <= 1
