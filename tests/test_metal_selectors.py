"""csrc/metal/selectors.h against what Apple's system answers: tests/data/metal_facts.json, made by metal_facts.py."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "csrc" / "metal" / "selectors.h"
LOOKED_UP = ROOT / "csrc" / "metal" / "objc.cpp"
# Named in the documentation of the Objective-C runtime, and by none of the wheels: metal-cpp sends alloc and init, and
# finds classes by objc_lookUpClass.
UNTOLD = {"new", "objc_getClass"}
# How the types of selectors.h are passed
LETTERS = {
    "void": "v",
    "Flag": "B",
    "Integer": "q",
    "Unsigned": "Q",
    "uint64_t": "Q",
    "Seconds": "d",
    "Size": "S",
    **dict.fromkeys(("Id", "SelectorId", "Text", "Block", "ErrorPlace", "void*", "const void*"), "p"),
}


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    text = (ROOT / "tests" / "data" / "metal_facts.json").read_text(encoding="utf-8")
    return json.loads(text)  # type: ignore[no-any-return]


def entries(text: str, name: str) -> list[list[str]]:
    """Return the arguments of every X(...) of the list that a macro of the header defines."""
    body = re.search(rf"#define {name}\(X\)((?:.*\\\n)*.*)\n", text)
    assert body, name
    flat = re.sub(r"/\*.*?\*/|\\\n", " ", body[1])
    found = re.findall(r"X\(((?:[^()]|\([^()]*\))*)\)", flat)
    assert len(found) == len(re.findall(r"\bX\(", flat))
    return [[part.strip() for part in re.split(r",(?![^()]*\))", each)] for each in found]


def signature(result: str, parameters: str) -> str:
    types = [t.strip() for t in parameters.strip("()").split(",") if t.strip()]
    return "".join(LETTERS[t] for t in [result, *types])


def answered(facts: dict[str, Any], owner: str, selector: str) -> str | None:
    """Return the signature of a message of a class, or of what it is derived from."""
    while owner:
        if selector in facts["classes"][owner]:
            return str(facts["classes"][owner][selector])
        owner = facts["parents"].get(owner, "NSObject" if owner != "NSObject" else "")
    return None


def agrees(signature: str, others: list[str]) -> bool:
    """Whether one of the others passes the same: pyobjc has one line for all protocols with a message of that name."""
    return signature.replace("q", "Q") in [other.replace("q", "Q") for other in others]


def problems(text: str, facts: dict[str, Any]) -> Iterator[str]:
    for (owner,) in entries(text, "LUTKERN_OBJC_CLASSES"):
        if owner not in facts["classes"]:
            yield f"no class {owner}"
    for _, owner, quoted, result, parameters in entries(text, "LUTKERN_OBJC_MESSAGES"):
        selector = quoted.strip('"')
        ours = signature(result, parameters)
        if len(ours) - 1 != selector.count(":"):
            yield f"{owner} {selector}: {len(ours) - 1} parameters"
        if selector in UNTOLD:
            continue
        if owner not in facts["classes"]:
            yield f"no class {owner}"
            continue
        told = answered(facts, owner, selector)
        # A class method, with text: pyobjc names it, metal-cpp has others that do the same.
        if told is None and selector == "stringWithUTF8String:" and selector in facts["pyobjc"]:
            told = "pp"
        if told != ours:
            yield f"{owner} {selector}: {told}, the header has {ours}"
        # Two foreign voices: what pyobjc tells of a protocol's message, its class aside
        others = facts["pyobjc"].get(selector)
        if others and not agrees(ours, others):
            yield f"{selector}: pyobjc says {others}, the header has {ours}"
    for _, name, value in entries(text, "LUTKERN_METAL_NUMBERS"):
        if facts["numbers"].get(name) != int(value, 0):
            yield f"{name}: {facts['numbers'].get(name)}, the header has {value}"


def test_header_is_what_the_system_answers(facts: dict[str, Any]) -> None:
    text = HEADER.read_text(encoding="utf-8")
    assert list(problems(text, facts)) == []
    assert len(entries(text, "LUTKERN_OBJC_MESSAGES")) > 30


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('"newBufferWithLength:options:"', '"newBufferWithLenght:options:"', "MTLDevice newBufferWithLenght:options:"),
        ("X(MTLCompileOptions)", "X(MTLCompileOption)", "no class MTLCompileOption"),
        ('MTLBuffer, "contents"', 'MTLDevice, "contents"', "MTLDevice contents: None, the header has p"),
        (
            '"supportsFamily:", Flag, (Integer)',
            '"supportsFamily:", Flag, (Unsigned)',
            "supportsFamily:: Bq, the",
        ),
        ('"commit", void, ()', '"commit", void, (Id)', "MTLCommandBuffer commit: 1 parameters"),
        ('"stringWithUTF8String:"', '"stringWithUtf8String:"', "NSString stringWithUtf8String:: None"),
        ("MTLGPUFamilyApple7, 1007", "MTLGPUFamilyApple7, 1008", "MTLGPUFamilyApple7: 1007, the header has 1008"),
        ("MTLLanguageVersion2_4, 131076", "MTLLanguageVersion2_5, 131076", "MTLLanguageVersion2_5: None"),
    ],
)
def test_mistakes_are_seen(facts: dict[str, Any], right: str, wrong: str, said: str) -> None:
    text = HEADER.read_text(encoding="utf-8")
    assert right in text
    assert any(said in problem for problem in problems(text.replace(right, wrong), facts))


def test_functions_that_are_looked_up(facts: dict[str, Any]) -> None:
    """Also what is said of MTLCopyAllDevices: the array belongs to the caller."""
    names = set(re.findall(r'\{libraries\.\w+, "(\w+)"', LOOKED_UP.read_text(encoding="utf-8")))
    assert names - UNTOLD == {*facts["functions"]["runtime"], "MTLCopyAllDevices"}
    assert facts["functions"]["MTLCopyAllDevices"] == {"signature": "p", "owned": True}


def test_both_voices_agree(facts: dict[str, Any]) -> None:
    """The facts themselves: wherever both tell the types of a message, they are the same."""
    told = {s: sig for of_class in facts["classes"].values() for s, sig in of_class.items()}
    both = {s: signatures for s, signatures in facts["pyobjc"].items() if signatures and s in told}
    assert len(both) > 100
    different = {s for s, signatures in both.items() if not agrees(told[s], signatures)}
    # pyobjc says that its result is an integer.
    assert different == {"newRenderPipelineStateWithTileDescriptor:options:reflection:error:"}
