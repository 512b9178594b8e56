"""Arithmetic instructions, each as a line of Python over arrays. ARITHMETIC: by opcode."""

from __future__ import annotations

from collections.abc import Callable

from .parse import Instruction
from .writer import Writer, numpy_kind

Emitter = Callable[[Writer, Instruction], None]


def _sources(w: Writer, i: Instruction, kind: str, first: int = 1) -> list[str]:
    return [w.source(o, kind) for o in i.operands[first:]]


def _known(i: Instruction, *words: str) -> None:
    """Every modifier is one of the words or the type."""
    for modifier in i.modifiers:
        if modifier not in words and modifier != i.type:
            raise i.error(f"unknown modifier .{modifier}")


def _float_result(w: Writer, i: Instruction, expression: str, kind: str) -> None:
    if "sat" in i.modifiers:
        expression = f"floats.saturate({expression})"
    if "ftz" in i.modifiers:
        expression = f"floats.flush({expression})"
    w.assign(i.operands[0], expression, kind)


def _float_sources(w: Writer, i: Instruction, kind: str) -> list[str]:
    sources = _sources(w, i, kind)
    return [f"floats.flush({s})" for s in sources] if "ftz" in i.modifiers else sources


def _rounding(i: Instruction) -> str:
    return next((m for m in i.modifiers if m in ("rz", "rm", "rp")), "rn")


def _add(w: Writer, i: Instruction) -> None:
    sign = {"add": "+", "sub": "-"}[i.opcode]
    kind = numpy_kind(i.type)
    if kind[0] == "f":
        _known(i, "rn", "rz", "rm", "rp", "ftz", "sat")
        a, b = _float_sources(w, i, kind)
        rounding = _rounding(i)
        if rounding == "rn":
            _float_result(w, i, f"{a} {sign} {b}", kind)
        elif kind == "f4":
            _float_result(w, i, f"floats.add_f32({a}, {'' if sign == '+' else '-'}{b}, {rounding!r})", kind)
        else:
            raise i.error("unknown rounding of f64")
        return
    _known(i, "sat")
    if i.type in ("f16", "bf16", "f16x2", "bf16x2"):
        raise i.error("unknown type")
    a, b = _sources(w, i, kind)
    if "sat" in i.modifiers:
        w.assign(i.operands[0], f"integers.saturating({a}, {b}, {sign}1)", "i4")
    else:
        w.assign(i.operands[0], f"{a} {sign} {b}", kind)


def _multiply(w: Writer, i: Instruction) -> None:
    kind = numpy_kind(i.type)
    if kind[0] == "f":
        _known(i, "rn", "rz", "rm", "rp", "ftz", "sat")
        a, b = _float_sources(w, i, kind)
        rounding = _rounding(i)
        if rounding != "rn" and kind != "f4":
            raise i.error("unknown rounding of f64")
        _float_result(w, i, f"{a} * {b}" if rounding == "rn" else f"floats.mul_f32({a}, {b}, {rounding!r})", kind)
        return
    a, b = _sources(w, i, kind)
    w.assign(i.operands[0], *_product(i, a, b, kind))


def _product(i: Instruction, a: str, b: str, kind: str) -> tuple[str, str]:
    """Expression and type of an integer product: lo, hi or wide."""
    _known(i, "lo", "hi", "wide")
    if i.type[0] not in "us" or i.type in ("b32", "b64"):
        raise i.error("unknown type")
    if "wide" in i.modifiers:
        wide = f"{kind[0]}{2 * int(kind[1])}"
        return f"{a}.astype({wide!r}) * {b}.astype({wide!r})", wide
    if "hi" in i.modifiers:
        return f"integers.high({a}, {b})", kind
    return f"{a} * {b}", kind


def _multiply_add(w: Writer, i: Instruction) -> None:
    kind = numpy_kind(i.type)
    if kind[0] == "f":
        _fused(w, i)
        return
    a, b = (w.source(o, kind) for o in i.operands[1:3])
    product, wide = _product(i, a, b, kind)
    w.assign(i.operands[0], f"{product} + {w.source(i.operands[3], wide)}", wide)


def _fused(w: Writer, i: Instruction) -> None:
    _known(i, "rn", "rz", "rm", "rp", "ftz", "sat")
    if i.type != "f32":
        raise i.error("unknown type")
    a, b, c = _float_sources(w, i, "f4")
    _float_result(w, i, f"floats.fma_f32({a}, {b}, {c}, {_rounding(i)!r})", "f4")


def _divide(w: Writer, i: Instruction) -> None:
    kind = numpy_kind(i.type)
    if kind[0] == "f":
        _known(i, "rn", "approx", "full", "ftz")
        a, b = _float_sources(w, i, kind)
        _float_result(w, i, f"{a} / {b}", kind)
        return
    _known(i)
    a, b = _sources(w, i, kind)
    w.assign(i.operands[0], f"integers.{'divide' if i.opcode == 'div' else 'remainder'}({a}, {b})", kind)


def _extreme(w: Writer, i: Instruction) -> None:
    kind = numpy_kind(i.type)
    if kind[0] == "f":
        _known(i, "ftz")
        a, b = _float_sources(w, i, kind)
        _float_result(w, i, f"floats.{i.opcode}imum({a}, {b})", kind)
        return
    _known(i)
    a, b = _sources(w, i, kind)
    w.assign(i.operands[0], f"np.{i.opcode}imum({a}, {b})", kind)


def _unary(w: Writer, i: Instruction) -> None:
    """abs, neg, not, cnot."""
    kind = numpy_kind(i.type)
    _known(i, "ftz")
    if i.type in ("f16", "bf16", "f16x2", "bf16x2"):
        raise i.error("unknown type")
    (a,) = _float_sources(w, i, kind)
    text = {"abs": f"np.abs({a})", "neg": f"-({a})", "not": f"~({a})", "cnot": f"({a} == 0).astype({kind!r})"}
    w.assign(i.operands[0], text[i.opcode], kind)


def _logic(w: Writer, i: Instruction) -> None:
    _known(i)
    sign = {"and": "&", "or": "|", "xor": "^"}[i.opcode]
    kind = numpy_kind(i.type)
    a, b = _sources(w, i, kind)
    w.assign(i.operands[0], f"({a}) {sign} ({b})", kind)


def _lop3(w: Writer, i: Instruction) -> None:
    _known(i)
    kind = numpy_kind(i.type)
    a, b, c = (w.source(o, kind) for o in i.operands[1:4])
    w.assign(i.operands[0], f"integers.logic({a}, {b}, {c}, {int(i.operands[4].name, 0)})", kind)


def _shift(w: Writer, i: Instruction) -> None:
    _known(i)
    kind = numpy_kind(i.type)
    a = w.source(i.operands[1], kind)
    count = i.operands[2]
    if count.kind == "immediate" and int(count.name, 0) < 8 * int(kind[1]):
        text = f"{a} {'<<' if i.opcode == 'shl' else '>>'} {w.constant(int(count.name, 0), kind)}"
    else:
        text = f"integers.shift_{'left' if i.opcode == 'shl' else 'right'}({a}, {w.source(count, 'u4')})"
    w.assign(i.operands[0], text, kind)


def _funnel(w: Writer, i: Instruction) -> None:
    _known(i, "l", "r", "clamp", "wrap")
    a, b, c = _sources(w, i, "u4")
    w.assign(i.operands[0], f"integers.funnel({a}, {b}, {c}, {'l' in i.modifiers}, {'clamp' in i.modifiers})", "u4")


def _permute(w: Writer, i: Instruction) -> None:
    _known(i)
    a, b, c = _sources(w, i, "u4")
    w.assign(i.operands[0], f"integers.permute({a}, {b}, {c})", "u4")


def _dot(w: Writer, i: Instruction) -> None:
    types = [m for m in i.modifiers if m in ("s32", "u32")]
    _known(i, "lo", "hi", "s32", "u32")
    a, b, c = _sources(w, i, "u4")
    a, b = f"m.spread({a}, n)", f"m.spread({b}, n)"
    signs = f"{types[0] == 's32'}, {types[1] == 's32'}"
    if i.opcode == "dp4a":
        w.assign(i.operands[0], f"integers.dot4({a}, {b}, {c}, {signs})", "u4")
    else:
        w.assign(i.operands[0], f"integers.dot2({a}, {b}, {c}, {signs}, {'hi' in i.modifiers})", "u4")


def _bits(w: Writer, i: Instruction) -> None:
    """popc, clz, brev, bfind."""
    _known(i, "shiftamt")
    kind = numpy_kind(i.type)
    (a,) = _sources(w, i, kind)
    if i.opcode == "bfind":
        w.assign(i.operands[0], f"integers.find_first({a}, {'shiftamt' in i.modifiers})", "u4")
        return
    name = {"popc": "population", "clz": "leading_zeros", "brev": "reverse"}[i.opcode]
    w.assign(i.operands[0], f"integers.{name}({a})", kind if i.opcode == "brev" else "u4")


def _field(w: Writer, i: Instruction) -> None:
    """bfe, bfi, bmsk."""
    _known(i, "clamp", "wrap")
    kind = numpy_kind(i.type)
    if i.opcode == "bmsk":
        a, b = _sources(w, i, "u4")
        w.assign(i.operands[0], f"integers.field_mask({a}, {b}, {'clamp' in i.modifiers})", "u4")
        return
    values = 1 if i.opcode == "bfe" else 2
    sources = [w.source(o, kind) for o in i.operands[1 : 1 + values]]
    sources += [w.source(o, "u4") for o in i.operands[1 + values :]]
    w.assign(i.operands[0], f"integers.{'extract' if values == 1 else 'insert'}({', '.join(sources)})", kind)


def _approximate(w: Writer, i: Instruction) -> None:
    _known(i, "approx", "ftz")
    if i.type != "f32":
        raise i.error("unknown type")
    (a,) = _float_sources(w, i, "f4")
    _float_result(w, i, f"floats.approximate({i.opcode!r}, {a})", "f4")


def _root(w: Writer, i: Instruction) -> None:
    """sqrt and rcp, correctly rounded also where `.approx` allows less."""
    _known(i, "rn", "approx", "ftz")
    kind = numpy_kind(i.type)
    (a,) = _float_sources(w, i, kind)
    _float_result(w, i, f"np.sqrt({a})" if i.opcode == "sqrt" else f"np.dtype({kind!r}).type(1) / {a}", kind)


def _copysign(w: Writer, i: Instruction) -> None:
    _known(i)
    kind = numpy_kind(i.type)
    a, b = _sources(w, i, kind)
    w.assign(i.operands[0], f"np.copysign({b}, {a})", kind)


_COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
_UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}


def _comparison(w: Writer, i: Instruction, first: int) -> str:
    kind = numpy_kind(i.type)
    _known(i, "and", "or", "xor", "ftz", "num", "nan", "u32", "s32", "f32", *_COMPARE, *_UNORDERED)
    how = i.modifiers[0]
    a, b = (w.source(o, kind) for o in i.operands[first : first + 2])
    if "ftz" in i.modifiers:
        a, b = f"floats.flush({a})", f"floats.flush({b})"
    if how in ("num", "nan"):
        text = f"(np.isnan({a}) | np.isnan({b}))"
        return text if how == "nan" else f"~{text}"
    if how == "ne" and kind[0] == "f":  # ordered, unlike NumPy's
        return f"(({a} < {b}) | ({a} > {b}))"
    if how == "equ":
        return f"~(({a} < {b}) | ({a} > {b}))"
    if how == "neu":
        return f"({a} != {b})"
    if how in _UNORDERED:
        return f"~({a} {_UNORDERED[how]} {b})"
    return f"({a} {_COMPARE[how]} {b})"


def _set_predicate(w: Writer, i: Instruction) -> None:
    text = _comparison(w, i, 1)
    results = [text, f"~{text}"]
    joins = {"and": "&", "or": "|", "xor": "^"}
    for word, sign in joins.items():
        if word in i.modifiers:
            third = w.source(i.operands[3], "?")
            results = [f"({r}) {sign} ({third})" for r in results]
    target = i.operands[0]
    targets = target.parts if target.kind == "vector" else (target,)
    names = [f"t_{w.position}_{k}" for k in range(len(targets))]
    for name, result in zip(names, results, strict=False):
        w.emit(f"{name} = {result}")
    for part, name in zip(targets, names, strict=True):
        w.assign(part, name, "?")


def _select(w: Writer, i: Instruction) -> None:
    _known(i)
    kind = numpy_kind(i.type)
    a, b = (w.source(o, kind) for o in i.operands[1:3])
    w.assign(i.operands[0], f"np.where({w.source(i.operands[3], '?')}, {a}, {b})", kind)


ARITHMETIC: dict[str, Emitter] = {
    **dict.fromkeys(("add", "sub"), _add),
    "mul": _multiply,
    "mad": _multiply_add,
    "fma": _fused,
    **dict.fromkeys(("div", "rem"), _divide),
    **dict.fromkeys(("min", "max"), _extreme),
    **dict.fromkeys(("abs", "neg", "not", "cnot"), _unary),
    **dict.fromkeys(("and", "or", "xor"), _logic),
    "lop3": _lop3,
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel,
    "prmt": _permute,
    **dict.fromkeys(("dp4a", "dp2a"), _dot),
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), _bits),
    **dict.fromkeys(("bfe", "bfi", "bmsk"), _field),
    **dict.fromkeys(("ex2", "lg2", "tanh", "sin", "cos", "rsqrt"), _approximate),
    **dict.fromkeys(("sqrt", "rcp"), _root),
    "copysign": _copysign,
    "setp": _set_predicate,
    "selp": _select,
}
