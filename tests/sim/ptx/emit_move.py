"""Instructions that move values: registers, conversions, memory, and what a warp does together. MOVES: by opcode."""

from __future__ import annotations

from .emit import Emitter
from .memory import LOCAL_BASE, SHARED_BASE
from .parse import Instruction, Operand
from .writer import WIDTH, Writer, numpy_kind

_SPACES = ("global", "const", "shared", "local", "param")
_HARMLESS = ("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "relaxed", "volatile", "cta", "gpu", "sys")


def _move(w: Writer, i: Instruction) -> None:
    target, source = i.operands
    kind = numpy_kind(i.type)
    if target.kind == "vector":
        _unpack(w, target, source, kind)
    elif source.kind == "vector":
        _pack(w, target, source, kind)
    else:
        w.assign(target, w.source(source, kind), kind, fresh=False)


def _unpack(w: Writer, target: Operand, source: Operand, kind: str) -> None:
    """`mov.b64 {lo, hi}, d`."""
    part = int(kind[1]) // len(target.parts)
    name = f"t_{w.position}"
    w.emit(f"{name} = {w.source(source, kind)}")
    for k, operand in enumerate(target.parts):
        w.assign(operand, f"({name} >> {w.constant(8 * part * k, kind)}).astype('u{part}')", f"u{part}")


def _pack(w: Writer, target: Operand, source: Operand, kind: str) -> None:
    """`mov.b64 d, {lo, hi}`."""
    part = int(kind[1]) // len(source.parts)
    terms = []
    for k, operand in enumerate(source.parts):
        value = w.source(operand, f"u{part}")
        terms.append(f"({value}.astype({kind!r}) << {w.constant(8 * part * k, kind)})")
    w.assign(target, " | ".join(terms), kind)


def _convert_address(w: Writer, i: Instruction) -> None:
    space = next(m for m in i.modifiers if m.split("::")[0] in _SPACES).split("::")[0]
    base = {"shared": SHARED_BASE, "local": LOCAL_BASE}.get(space, 0)
    text = w.source(i.operands[1], "u8")
    sign = "-" if "to" in i.modifiers else "+"
    w.assign(i.operands[0], f"{text} {sign} {w.constant(base, 'u8')}", "u8")


# ---- conversions ----


def _convert(w: Writer, i: Instruction) -> None:
    words = [m for m in i.modifiers if m in WIDTH]
    for modifier in i.modifiers:
        if modifier not in WIDTH and modifier not in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "ftz", "sat"):
            raise i.error(f"unknown modifier .{modifier}")
    to, of = words
    rounding = next((m for m in i.modifiers if m[0] == "r"), "rn")
    if to in ("f16x2", "bf16x2"):
        name = "half" if to == "f16x2" else "bfloat"
        high, low = (
            f"floats.{name}_bits(m.spread({w.source(o, 'f4')}, n), {rounding!r}).astype('u4')" for o in i.operands[1:]
        )
        w.assign(i.operands[0], f"{high} << np.uint32(16) | {low}", "u4")
        return
    value, kind = _widened(w, i, of)
    if to in ("f16", "bf16"):
        value, kind = _as_float32(i, value, kind, rounding)
        name = "half" if to == "f16" else "bfloat"
        w.assign(i.operands[0], f"floats.{name}_bits({value}, {rounding!r})", "u2")
    elif to[0] == "f":
        _convert_to_float(w, i, value, kind, numpy_kind(to), rounding)
    elif kind[0] == "f":
        mode = rounding if rounding.endswith("i") else "rzi"
        w.assign(i.operands[0], f"floats.to_integer({value}, {to!r}, {mode!r})", numpy_kind(to))
    else:
        _convert_integer(w, i, value, kind, to)


def _widened(w: Writer, i: Instruction, of: str) -> tuple[str, str]:
    """The source; a half as float32."""
    value = w.source(i.operands[1], numpy_kind(of))
    if of in ("f16", "bf16"):
        return f"floats.{'half' if of == 'f16' else 'bfloat'}_value(m.spread({value}, n))", "f4"
    if "ftz" in i.modifiers and of == "f32":
        value = f"floats.flush({value})"
    return value, numpy_kind(of)


def _as_float32(i: Instruction, value: str, kind: str, rounding: str) -> tuple[str, str]:
    if kind != "f4" or rounding not in ("rn", "rz"):
        raise i.error("unknown conversion to a half")
    return value, kind


def _convert_to_float(w: Writer, i: Instruction, value: str, kind: str, to: str, rounding: str) -> None:
    if kind[0] != "f":
        exact = to == "f8" and int(kind[1]) < 8
        if to == "f8" and not exact and rounding != "rn":
            raise i.error("unknown rounding of f64")
        value = f"{value}.astype('f8')" if to == "f8" else f"floats.from_integer({value}, {rounding!r})"
    elif rounding.endswith("i"):
        value = f"floats.rint({value}, {rounding!r})"
    elif to == "f8":
        value = f"({value}).astype('f8')"
    elif kind == "f8":
        value = f"floats.narrow({value}, {rounding!r})"
    if "sat" in i.modifiers:
        value = f"floats.saturate({value})"
    w.assign(i.operands[0], value, to, fresh=False)


def _convert_integer(w: Writer, i: Instruction, value: str, kind: str, to: str) -> None:
    target = numpy_kind(to)
    have, want = int(kind[1]), int(target[1])
    if "sat" in i.modifiers:
        value = f"integers.saturate({value}, {target!r})"
    elif have > want:
        value = f"({value}).astype('u{want}').view({target!r})"
    elif have < want:
        value = f"({value}).astype('{kind[0]}{want}').view({target!r})"
    else:
        value = f"({value}).view({target!r})"
    w.assign(i.operands[0], value, target, fresh=False)


# ---- memory ----


def _access(i: Instruction) -> tuple[str, int, int]:
    """Space, width of an element, number of elements."""
    space, count = "generic", 1
    for modifier in i.modifiers:
        word = modifier.split("::")[0]
        if word in _SPACES:
            space = word
        elif modifier in ("v2", "v4", "v8"):
            count = int(modifier[1])
        elif modifier != i.type and word not in _HARMLESS and word not in ("L1", "L2", "unified"):
            raise i.error(f"unknown modifier .{modifier}")
    return ("global" if space == "const" else space), WIDTH[i.type], count


def _load(w: Writer, i: Instruction) -> None:
    space, width, count = _access(i)
    target, address = i.operands[:2]
    parts = target.parts if target.kind == "vector" else (target,)
    name = f"t_{w.position}"
    base = address.parts[0]
    if base.kind == "name" and base.name in w.params:
        offset = w.params[base.name] + address.offset
        w.emit(f"{name} = m.parameter({offset}, {width}, {count}, n)")
    else:
        text, space = w.address(address, space)
        w.emit(f"{name} = m.load({w.position}, {space!r}, {text}, L, {width}, {count}, {w.guard()})")
    letter = numpy_kind(i.type)[0]
    w.lanewise = True
    for k, part in enumerate(parts):
        column = f"{name}[:, {k}]"
        w.assign(part, column if letter == "u" else f"{column}.view('{letter}{width}')", f"{letter}{width}")


def _store(w: Writer, i: Instruction) -> None:
    space, width, count = _access(i)
    address, source = i.operands[:2]
    parts = source.parts if source.kind == "vector" else (source,)
    if len(parts) != count:
        raise i.error(f"{count} values expected")
    text, space = w.address(address, space)
    values = ", ".join(w.source(part, f"u{width}") for part in parts)
    w.emit(f"m.store({w.position}, {space!r}, {text}, L, {width}, ({values},), {w.guard()})")


def _asynchronous(w: Writer, i: Instruction) -> None:
    """`cp.async`: reads at once, arrives with the wait."""
    if "commit_group" in i.modifiers:
        w.emit("m.shared.commit(m.ids[L])")
        return
    if "wait_group" in i.modifiers or "wait_all" in i.modifiers:
        w.emit(f"m.shared.wait(m.ids[L], {int(i.operands[0].name) if i.operands else -1})")
        return
    if len(i.operands) != 3 or i.guard is not None:
        raise i.error("unknown form")
    size = int(i.operands[2].name, 0)
    to, _ = w.address(i.operands[0], "shared")
    of, _ = w.address(i.operands[1], "global")
    width = min(size, 8)
    w.emit(f"t = m.load({w.position}, 'global', {of}, L, {width}, {size // width}, None)")
    w.emit(f"m.copy({w.position}, {to}, L, t)")


def _trap(w: Writer, i: Instruction) -> None:
    w.emit(f"m.trap({w.position}, L, {w.guard()})")


def _nothing(w: Writer, i: Instruction) -> None:
    """Fences and hints: every instruction is complete before the next here."""


# ---- what a warp does together ----


def _shuffle(w: Writer, i: Instruction) -> None:
    mode = i.modifiers[1]
    target, *sources = i.operands
    parts = target.parts if target.kind == "vector" else (target, Operand("sink"))
    a, b, c = (f"m.spread({w.source(o, 'u4')}, n)" for o in sources[:3])
    name = f"t_{w.position}"
    w.emit(f"{name} = m.together({w.position}, L, warps.shuffle, {mode!r}, {a}, {b}, {c})")
    w.lanewise = True
    w.assign(parts[0], f"{name}[0]", "u4")
    w.assign(parts[1], f"{name}[1]", "?")


def _vote(w: Writer, i: Instruction) -> None:
    mode = i.modifiers[1]
    value = f"m.spread({w.source(i.operands[1], '?')}, n)"
    mask = f"m.spread({w.source(i.operands[2], 'u4')}, n)"
    w.lanewise = True
    kind = "u4" if mode == "ballot" else "?"
    w.assign(i.operands[0], f"m.together({w.position}, L, warps.vote, {mode!r}, {value}, {mask})", kind)


def _reduce(w: Writer, i: Instruction) -> None:
    mode, kind = i.modifiers[1], numpy_kind(i.type)
    value = f"m.spread({w.source(i.operands[1], kind)}, n)"
    mask = f"m.spread({w.source(i.operands[2], 'u4')}, n)"
    w.lanewise = True
    w.assign(i.operands[0], f"m.together({w.position}, L, warps.reduce, {mode!r}, {value}, {mask})", kind)


def _active(w: Writer, i: Instruction) -> None:
    w.lanewise = True
    w.assign(i.operands[0], f"m.together({w.position}, L, warps.active)", "u4")


def _matrix(w: Writer, i: Instruction) -> None:
    shape = next(m for m in i.modifiers if m[0] == "m" and m[1:2].isdigit())
    types = [m for m in i.modifiers if m in WIDTH]
    if types[0] != "s32" or types[3] != "s32" or not set(types[1:3]) <= {"s8", "u8"} or "satfinite" in i.modifiers:
        raise i.error("unknown types")
    target, *sources = i.operands
    groups = [o.parts if o.kind == "vector" else (o,) for o in sources]
    lists = ", ".join("[" + ", ".join(f"m.spread({w.source(p, 'u4')}, n)" for p in parts) + "]" for parts in groups)
    name = f"t_{w.position}"
    w.emit(f"{name} = m.units(warps.matrix_multiply, {shape!r}, {lists}, {types[1]!r}, {types[2]!r})")
    w.lanewise = True
    for k, part in enumerate(target.parts):
        w.assign(part, f"{name}[{k}]", "u4")


def _load_matrix(w: Writer, i: Instruction) -> None:
    if "m8n8" not in i.modifiers or i.type != "b16":
        raise i.error("unknown shape")
    target, address = i.operands
    count = next((int(m[1]) for m in i.modifiers if m in ("x1", "x2", "x4")), 1)
    text, _ = w.address(address, "shared")
    name = f"t_{w.position}"
    w.emit(f"{name} = m.matrices({w.position}, L, {text}, {count}, {'trans' in i.modifiers})")
    w.lanewise = True
    for k, part in enumerate(target.parts if target.kind == "vector" else (target,)):
        w.assign(part, f"{name}[{k}]", "u4")


MOVES: dict[str, Emitter] = {
    "mov": _move,
    "cvta": _convert_address,
    "cvt": _convert,
    "ld": _load,
    "ldu": _load,
    "st": _store,
    "cp": _asynchronous,
    "trap": _trap,
    "membar": _nothing,
    "fence": _nothing,
    "prefetch": _nothing,
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "activemask": _active,
    "mma": _matrix,
    "ldmatrix": _load_matrix,
}

# Instructions that wait for the lanes that an operand names, and which operand that is. None: all 32.
TOGETHER: dict[str, int | None] = {"shfl": -1, "vote": -1, "redux": -1, "mma": None, "ldmatrix": None}
