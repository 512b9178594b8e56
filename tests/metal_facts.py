"""Write tests/data/metal_facts.json: what Apple's system answers, as far as csrc/metal/selectors.h may name it.

    python tests/metal_facts.py [--check] [FOLDER]

Two voices that are foreign to each other, both read on any machine, as text: pyobjc, whose wheels for macOS hold the
numbers of enumerations and the types of messages, made from Apple's SDK; and metal-cpp, Apple's own C++ headers, which
the wheel mlx-metal carries: the messages of each class, and how their parameters are passed. FOLDER is where the wheels
are, or go. --check exits 1 if the file differs from what would be written.

A signature has a letter for the result, then one for each parameter: v nothing, p any pointer or object, B a BOOL,
q and Q 64-bit integers, d a double, S an MTLSize; ? is anything else. Messages with such are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "data" / "metal_facts.json"
# Versions that are known to be readable; the platform is that of the wheel.
WHEELS = {
    "pyobjc-framework-Metal": ("12.2.2", "macosx_11_0_universal2"),
    "pyobjc-framework-Cocoa": ("13.0", "macosx_11_0_universal2"),
    "pyobjc-core": ("13.0", "macosx_11_0_universal2"),
    "mlx-metal": ("0.32.4", "macosx_14_0_arm64"),
}
METAL_CLASSES = {
    *("Device", "Buffer", "Resource", "Allocation", "Event", "SharedEvent"),
    *("CompileOptions", "Library", "Function", "ComputePipelineState"),
    *("CommandQueue", "CommandBuffer", "CommandEncoder", "ComputeCommandEncoder", "BlitCommandEncoder"),
}
FOUNDATION_CLASSES = ["Object", "String", "Array", "Error"]
NUMBERS = re.compile(
    r"\$(MTL(?:GPUFamily|Resource|LanguageVersion|MathMode|MathFloat|CommandBufferStatus|DispatchType|BarrierScope)"
    r"\w*)@(\d+)"
)
RUNTIME = ("objc_getClass", "sel_registerName", "objc_msgSend", "objc_autoreleasePoolPush", "objc_autoreleasePoolPop")


def fetch(folder: Path) -> dict[str, Path]:
    """Return the wheel of each package, downloaded where it is not there."""
    found = {}
    for package, (version, platform) in WHEELS.items():
        pattern = f"{package.replace('-', '_')}-{version}-*.whl".lower()
        if not list(folder.glob(pattern)):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += ["--platform", platform, "--python-version", "3.12", "--dest", str(folder)]
            subprocess.run([*command, f"{package}=={version}"], check=True)
        (found[package],) = folder.glob(pattern)
    return found


# ---- pyobjc ----


def letter_of_encoding(encoding: str) -> str:
    """Return how a type that is written as the Objective-C runtime writes it is passed."""
    plain = encoding.lstrip("rnNoORVA")
    if plain[:1] in "@^*:#":
        return "p"
    return {"Z": "B", "B": "B", "c": "B", "v": "v", "Q": "Q", "q": "q", "d": "d", "{MTLSize=QQQ}": "S"}.get(plain, "?")


class _Processor(ast.NodeTransformer):
    """What is written for two kinds of processors becomes that for arm64. ast looks for the name of the method."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in ("sel32or64", "selAorI"):
            return node.args[1 if node.func.id == "sel32or64" else 0]
        return node


def metadata(wheel: Path, name: str) -> ast.Module:
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(f"{name}/_metadata.py"))
    _Processor().visit(tree)
    return tree


def pyobjc_messages(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield class, selector and signature; the methods of protocols are said to be those of NSObject."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "r"):
            continue
        owner, selector, told = (ast.literal_eval(argument) for argument in node.args)
        types: dict[int, Any] = told.get("arguments", {})
        every = [told.get("retval", {}), *(types.get(i + 2, {}) for i in range(selector.count(b":")))]
        signature = "".join(letter_of_encoding(_text(each.get("type", "?"))) for each in every)
        yield owner.decode(), selector.decode(), signature


def _text(encoding: str | bytes) -> str:
    return encoding.decode() if isinstance(encoding, bytes) else encoding


def assigned(tree: ast.Module, name: str) -> Any:
    """Return the literal that the module gives to a name."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise ValueError(f"pyobjc: the metadata has no {name}")


# ---- metal-cpp ----

METHOD = re.compile(
    r"_INLINE\s+(?P<result>[^;{}()]+?)\s+(?P<space>MTL|NS)::(?P<owner>\w+)(?:<[^>]*>)?::\w+\((?P<parameters>.*)\)"
    r"(?: const)?\s*\{\s*(?:return )?(?:Object::)?sendMessage(?:Safe)?<(?P<sent>.*?)>\(\w+(?:\(\w+\))?, "
    r"_(?:MTL|NS)_PRIVATE_SEL\((?P<name>\w+)\)(?P<arguments>.*)\);\s*\}"
)
SELECTOR = re.compile(r'_PRIVATE_DEF_SEL\((\w+),\s*"([^"]+)"\)')
ENUMERATION = re.compile(r"_(?:MTL|NS)_(?:ENUM|OPTIONS)\(\s*NS::(U?Integer),\s*(\w+)\s*\)")
PARENT = re.compile(r"class (\w+) : public NS::(?:Referencing|Copying|SecureCoding)<\w+, (\w+)>")
PLAIN = {
    "void": "v",
    "bool": "B",
    "double": "d",
    "CFTimeInterval": "d",
    "UInteger": "Q",
    "Integer": "q",
    "uint64_t": "Q",
    "int64_t": "q",
    "SEL": "p",
    "Size": "S",
}


def letter_of_type(text: str, integers: dict[str, str]) -> str:
    """Return how a type of metal-cpp is passed; integers: of the enumerations."""
    plain = re.sub(r"\bconst\b|\b(?:NS|MTL)::", "", text).strip()
    if plain.endswith("*") or "(^" in plain or plain.endswith(("Handler", "HandlerBlock")):
        return "p"
    return PLAIN.get(plain) or {"UInteger": "Q", "Integer": "q"}.get(integers.get(plain, ""), "?")


def split(parameters: str) -> dict[str, str]:
    """Return the type of each parameter by its name."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(parameters + ","):
        depth += (c in "(<") - (c in ")>")
        if c == "," and depth == 0:
            parts.append(parameters[start:i].strip())
            start = i + 1
    found = {}
    for part in filter(None, parts):
        block = re.search(r"\(\^(\w+)\)", part)
        name = block[1] if block else re.split(r"[\s*&]", part)[-1]
        found[name] = part if block else part[: -len(name)]
    return found


def metal_cpp(wheel: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return selector -> signature of each class, and the class that a class is derived from."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if re.search(r"metal_cpp/(Metal|Foundation)/\w+\.hpp$", n)]
        texts = [archive.read(n).decode() for n in sorted(names)]
    selectors = {key: text for source in texts for key, text in SELECTOR.findall(source)}
    integers = {name: kind for source in texts for kind, name in ENUMERATION.findall(source)}
    wanted = {("MTL", c): f"MTL{c}" for c in METAL_CLASSES} | {("NS", c): f"NS{c}" for c in FOUNDATION_CLASSES}
    wanted[("NS", "Referencing")] = "NSObject"
    messages: dict[str, dict[str, str]] = {}
    for match in (m for source in texts for m in METHOD.finditer(source)):
        owner = wanted.get((match["space"], match["owner"]))
        if not owner:
            continue
        types = split(match["parameters"])
        given = [a.strip() for a in match["arguments"].split(",")[1:]]
        letters = [letter_of_type(match["sent"], integers)]
        letters += [letter_of_type(types.get(argument, "unknown"), integers) for argument in given]
        if "?" not in letters:
            messages.setdefault(owner, {})[selectors[match["name"]]] = "".join(letters)
    parents = {f"MTL{c}": f"MTL{p}" for source in texts for c, p in PARENT.findall(source) if c in METAL_CLASSES}
    return messages, {c: p for c, p in parents.items() if p[3:] in METAL_CLASSES}


# ---- the file ----


def facts(wheels: dict[str, Path]) -> dict[str, Any]:
    metal = metadata(wheels["pyobjc-framework-Metal"], "Metal")
    cocoa = metadata(wheels["pyobjc-framework-Cocoa"], "Foundation")
    messages, parents = metal_cpp(wheels["mlx-metal"])
    known = {selector for of_class in messages.values() for selector in of_class}
    told: dict[str, set[str]] = {}
    for owner, selector, signature in pyobjc_messages(metal):
        if owner in ("NSObject", "MTLCompileOptions") and selector in known and "?" not in signature:
            told.setdefault(selector, set()).add(signature)
    for owner, selector, _ in pyobjc_messages(cocoa):
        if owner == "NSString" and selector in ("UTF8String", "stringWithUTF8String:"):
            told[selector] = set()  # text, which pyobjc turns into its own
    with zipfile.ZipFile(wheels["pyobjc-core"]) as archive:
        core = archive.read("objc/_objc.cpython-312-darwin.so")
    function = assigned(metal, "functions")["MTLCopyAllDevices"]
    return {
        "packages": {
            package: {"version": WHEELS[package][0], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for package, path in wheels.items()
        },
        "classes": {owner: dict(sorted(of_class.items())) for owner, of_class in sorted(messages.items())},
        "parents": dict(sorted(parents.items())),
        "pyobjc": {selector: sorted(signatures) for selector, signatures in sorted(told.items())},
        "numbers": {name: int(value) for name, value in sorted(NUMBERS.findall(assigned(metal, "enums")))},
        "functions": {
            "MTLCopyAllDevices": {
                "signature": letter_of_encoding(function[0].decode()),
                "owned": function[2]["retval"] == {"already_cfretained": True},
            },
            "runtime": [name for name in RUNTIME if f"\0_{name}\0".encode() in core],
        },
    }


def main(arguments: list[str]) -> int:
    folders = [Path(a) for a in arguments if a != "--check"]
    with tempfile.TemporaryDirectory() as temporary:
        text = json.dumps(facts(fetch(folders[0] if folders else Path(temporary))), indent=1) + "\n"
    if "--check" in arguments:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} differs from what the wheels say", file=sys.stderr)
        return 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
