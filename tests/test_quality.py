"""Errors of packed files, tensor by tensor. The judge is the definition, in NumPy float64 on whole tensors."""

from __future__ import annotations

import json
import math
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

import lutkern
from gguf_bytes import write_every_format, write_split
from lutkern.compare import Skipped, tensors
from lutkern.compare.tensors import Sums, measure

Floats = npt.NDArray[np.float32]


def weight(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def f32(w: Floats) -> lutkern.PackedTensor:
    return lutkern.PackedTensor.from_blocks(np.ascontiguousarray(w), "f32", w.shape)


def expected(a: Floats, b: Floats, importance: Floats | None = None) -> dict[str, Any]:
    """The figures by their definition; importance (cols,) or (experts, cols)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    found = {
        "rmse": math.sqrt(((x - y) ** 2).sum() / (x**2).sum()),
        "max_error": np.abs(x - y).max(),
        "cosine": (x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()),
    }
    if importance is not None:
        columns = importance.astype(np.float64)[..., None, :]
        found["weighted"] = math.sqrt((columns * (x - y) ** 2).sum() / (columns * x**2).sum())
    return found


def expect_close(errors: lutkern.compare.Errors, figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        assert getattr(errors, name) == pytest.approx(value, rel=1e-12), name


def write(path: Path, contents: dict[str, Any], **metadata: Any) -> Path:
    lutkern.write_gguf(path, contents, {"general.architecture": "example", **metadata})
    return path


# ---- one tensor


@pytest.mark.parametrize("size", [(5, 768), (3, 4, 256), (1, 1024), (2, 1, 1536)])
@pytest.mark.parametrize("piece", [256, 512, 1 << 18], ids="piece{}".format)
def test_figures_of_a_tensor(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...], piece: int) -> None:
    """Pieces of 256 and 512 weights cut these shapes within rows, between rows, and into uneven rests."""
    monkeypatch.setattr(tensors, "PIECE_WEIGHTS", piece)
    w = weight(*size)
    importance = np.random.default_rng(1).uniform(0.1, 3, (*size[:-2], size[-1])).astype(np.float32)
    t = lutkern.pack(w, "iq2_xs", importance=importance, layout="blocks")
    expect_close(measure(f32(w), t, importance).errors(), expected(w, lutkern.dequantize(t), importance))
    plain = measure(f32(w), t).errors()
    assert plain.weighted is None
    assert (plain.tensors, plain.weights) == (1, w.size)
    assert (plain.bits_a, plain.bits_b) == (32, 2.3125)


def test_every_format_against_itself(fmt: lutkern.Format) -> None:
    blocks = np.random.default_rng(3).integers(0, 64, (3, fmt.row_bytes(512)), np.uint8)
    t = lutkern.PackedTensor.from_blocks(blocks, fmt, (3, 512))
    errors = measure(t, t, np.ones(512, np.float32)).errors()
    assert (errors.rmse, errors.weighted, errors.max_error, errors.cosine) == (0.0, 0.0, 0.0, 1.0)
    assert errors.bits_b == fmt.bits_per_weight


def test_importance_picks_columns() -> None:
    a = np.full((2, 3, 32), 2, np.float32)
    b = a.copy()
    b[1, :, 7] += 1
    importance = np.full((2, 32), 1e-3, np.float32)
    importance[1, 7] = 4
    errors = measure(f32(a), f32(b), importance).errors()
    assert errors.rmse == pytest.approx(math.sqrt(3 / (4 * 192)))
    assert errors.weighted == pytest.approx(math.sqrt(4 * 3 / (4 * 3 * (4 + 63e-3))), rel=1e-6)


def test_weights_that_are_not_finite_are_counted_and_left_out() -> None:
    a, b = weight(4, 64), weight(4, 64, seed=1)
    clean_a, clean_b = a.copy(), b.copy()
    a[0, 3], a[1, 5], b[2, 7], b[1, 5] = np.nan, np.inf, -np.inf, np.inf
    for place in ((0, 3), (1, 5), (2, 7)):
        clean_a[place] = clean_b[place] = 0
    importance = np.linspace(0.5, 2, 64, dtype=np.float32)
    errors = measure(f32(a), f32(b), importance).errors()
    assert errors.not_finite == 3
    expect_close(errors, expected(clean_a, clean_b, importance))


def test_zeros() -> None:
    zeros, ones = np.zeros((2, 32), np.float32), np.ones((2, 32), np.float32)
    same, lost, gained = (measure(f32(a), f32(b)).errors() for a, b in ((zeros, zeros), (ones, zeros), (zeros, ones)))
    assert (same.rmse, same.cosine) == (0.0, None)
    assert (lost.rmse, lost.cosine) == (1.0, None)
    assert (gained.rmse, gained.cosine, gained.max_error) == (math.inf, None, 1.0)


def test_opposite_weights() -> None:
    errors = measure(f32(weight(3, 64)), f32(-weight(3, 64))).errors()
    assert (errors.rmse, errors.cosine) == (2.0, -1.0)


def test_sums_of_tensors_add_up() -> None:
    a, b, c = weight(4, 64), weight(4, 64, seed=1), 3 * weight(6, 64, seed=2)
    importance = np.linspace(1, 2, 64, dtype=np.float32)
    total = Sums()
    total.add(measure(f32(a), f32(b), importance))
    total.add(measure(f32(c), lutkern.pack(c, "q8_0", layout="blocks")))
    errors = total.errors()
    q = lutkern.dequantize(lutkern.pack(c, "q8_0"))
    expect_close(errors, expected(np.concatenate([a, c]), np.concatenate([b, q])))
    assert errors.weighted == pytest.approx(expected(a, b, importance)["weighted"])
    assert (errors.tensors, errors.weights, errors.bits_a) == (2, 640, 32)
    assert errors.bits_b == pytest.approx((4 * 64 * 32 + 6 * 64 * 8.5) / 640)


@pytest.mark.parametrize("size", [(64, 256, 1024), (1, 1 << 24)])
def test_memory_stays_small(size: tuple[int, ...]) -> None:
    """16 million weights are 64 MB as float32, 128 MB as float64."""
    a = lutkern.PackedTensor.from_blocks(np.zeros(2 << 24, np.uint8), "bf16", size)
    b = lutkern.PackedTensor.from_blocks(np.zeros((34 << 24) // 32, np.uint8), "q8_0", size)
    tracemalloc.start()
    assert measure(a, b).errors().max_error == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 << 20


# ---- two files


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, dict[str, Floats], dict[str, Any]]:
    """An original and a packed file of four weights, a norm and an expert weight."""
    shapes = {"blk.0.up": (8, 512), "blk.1.up": (8, 512), "exps": (3, 4, 256), "out": (16, 64), "table": (8, 256)}
    originals = {name: weight(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    originals["norm"] = weight(64, seed=9)
    formats = {"blk.0.up": "iq2_xxs", "blk.1.up": "iq2_xxs", "exps": "iq3_xxs", "out": "q8_0", "table": "f32"}
    packed = {name: lutkern.pack(originals[name], fmt) for name, fmt in formats.items()} | {"norm": originals["norm"]}
    a, b = write(tmp_path / "a.gguf", originals), write(tmp_path / "b.gguf", packed)
    return a, b, originals, packed


def test_files(pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]]) -> None:
    a, b, originals, packed = pair
    said: list[str] = []
    found = lutkern.compare_files(a, b, model=False, report=said.append)
    decoded = {n: lutkern.dequantize(t) if isinstance(t, lutkern.PackedTensor) else t for n, t in packed.items()}
    assert (found.a, found.b, found.skipped, found.model) == (str(a), str(b), (), None)
    assert found.model_skipped == "it was not asked for"
    assert said == ["comparing 6 tensors"]
    for tensor in found.tensors:
        expect_close(tensor.errors, expected(originals[tensor.name], decoded[tensor.name]))
        assert tensor.shape == originals[tensor.name].shape
        assert tensor.format_a == "f32"
    order = [t.errors.rmse for t in found.tensors]
    assert order == sorted(order, reverse=True)
    assert {t.name: t.format_b for t in found.tensors}["exps"] == "iq3_xxs"
    assert list(found.formats) == ["iq2_xxs", "iq3_xxs", "q8_0", "f32"]
    names = ("blk.0.up", "blk.1.up")
    both = expected(*(np.concatenate([source[name] for name in names]) for source in (originals, decoded)))
    expect_close(found.formats["iq2_xxs"], both)
    assert found.formats["iq2_xxs"].tensors == 2
    assert found.formats["f32"].rmse == 0
    everything = expected(*(np.concatenate([source[n].ravel() for n in originals]) for source in (originals, decoded)))
    expect_close(found.total, everything)
    assert found.total.weights == sum(w.size for w in originals.values())


def test_files_with_importance(pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]], tmp_path: Path) -> None:
    a, b, originals, packed = pair
    importance = lutkern.Importance()
    random = np.random.default_rng(4)
    importance.update("blk.1.up", 3 * random.standard_normal((50, 512)).astype(np.float32))
    ids = random.integers(0, 3, (50, 2))
    importance.update("exps", random.standard_normal((50, 256)).astype(np.float32), ids, experts=3)
    importance.write(tmp_path / "i.gguf")
    found = lutkern.compare_files(a, b, importance=tmp_path / "i.gguf", model=False)
    importance = lutkern.Importance.read(tmp_path / "i.gguf")
    assert found == lutkern.compare_files(a, b, importance=importance, model=False)
    by_name = {tensor.name: tensor.errors for tensor in found.tensors}
    for name in ("blk.1.up", "exps"):
        columns = importance.for_weight(name, originals[name].shape)
        figures = expected(originals[name], lutkern.dequantize(packed[name]), columns)
        assert by_name[name].weighted == pytest.approx(figures["weighted"], rel=1e-6)
    assert {n for n, errors in by_name.items() if errors.weighted is None} == {"blk.0.up", "out", "norm", "table"}
    assert found.formats["iq2_xxs"].weighted == by_name["blk.1.up"].weighted
    assert found.formats["q8_0"].weighted is None
    parts = [(originals[name].size, by_name[name].weighted) for name in ("blk.1.up", "exps")]
    mean_square = sum(n * error**2 for n, error in parts) / sum(n for n, _ in parts)
    assert found.total.weighted == pytest.approx(math.sqrt(mean_square))
    wrong = lutkern.Importance()
    wrong.update("out", weight(5, 32))
    with pytest.raises(ValueError, match=r"^Importance\.for_weight: 'out' is .*, the weight is 16 x 64$"):
        lutkern.compare_files(a, b, importance=wrong, model=False)


def test_identical_files(tmp_path: Path) -> None:
    path = tmp_path / "every.gguf"
    write_every_format(path)
    found = lutkern.compare_files(path, path, model=False)
    assert [t.name for t in found.tensors if t.errors.rmse or t.errors.max_error or t.errors.not_finite] == []
    assert found.total.tensors == 2 * len(lutkern.formats()) + 2
    assert found.skipped == (
        Skipped("ids", "i32 in A, no format of lutkern"),
        Skipped("conv", "shape (2, 3, 5, 4), more than 3 dimensions"),
    )


def test_split_files(tmp_path: Path) -> None:
    paths, arrays = write_split(tmp_path / "big.gguf")
    whole = write(tmp_path / "whole.gguf", {name: lutkern.pack(w, "q8_0") for name, w in arrays.items()})
    one, two = (lutkern.compare_files(*files, model=False) for files in ((paths[1], whole), (whole, paths[2])))
    assert one.total.tensors == two.total.tensors == 6
    assert 0.001 < one.total.rmse < 0.01
    assert two.total.rmse == pytest.approx(one.total.rmse, rel=0.01)


def test_tensors_that_cannot_be_compared(tmp_path: Path) -> None:
    w = weight(8, 64)
    a = write(tmp_path / "a.gguf", {"same": w, "gone": w, "other": w, "row": w[:1], "turned": w, "lead": w[None]})
    b = write(
        tmp_path / "b.gguf",
        {"new": w, "same": w, "other": w[:, :32], "row": w[0], "turned": w.reshape(64, 8)} | {"lead": w},
    )
    found = lutkern.compare_files(a, b, model=False)
    assert sorted(t.name for t in found.tensors) == ["lead", "row", "same"]
    assert found.total.rmse == 0
    assert found.skipped == (
        Skipped("gone", "only in A"),
        Skipped("other", "shape (8, 64) in A, (8, 32) in B"),
        Skipped("turned", "shape (8, 64) in A, (64, 8) in B"),
        Skipped("new", "only in B"),
    )
    assert [entry.name for entry in lutkern.compare_files(a, b, match="^(same|new)$", model=False).skipped] == ["new"]


def test_a_type_without_a_format_in_b(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "example")
    writer.add_tensor("w", np.zeros((2, 3), np.float64))
    writer.add_tensor("v", np.zeros((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    a = write(tmp_path / "a.gguf", {"w": np.zeros((2, 3), np.float32), "v": np.zeros((2, 3), np.float32)})
    assert lutkern.compare_files(a, tmp_path / "b.gguf", model=False).skipped == (
        Skipped("w", "f64 in B, no format of lutkern"),
    )


def test_match_restricts(pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]]) -> None:
    found = lutkern.compare_files(*pair[:2], match=r"^blk\.", model=False)
    assert sorted(t.name for t in found.tensors) == ["blk.0.up", "blk.1.up"]
    assert list(found.formats) == ["iq2_xxs"]


def test_worst_first(tmp_path: Path) -> None:
    """A weight that is not finite is worse than any error; importance decides where there is any."""
    a = {name: weight(2, 32, seed=i) for i, name in enumerate(("small", "large", "broken"))}
    a["small"][:, 3] = 0.01
    b = {"small": 1.1 * a["small"], "large": 1.5 * a["large"], "broken": a["broken"].copy()}
    b["small"][:, 3] = 0.03
    b["broken"][0, 0] = np.nan
    files = write(tmp_path / "a.gguf", a), write(tmp_path / "b.gguf", b)
    importance = lutkern.Importance()
    importance.update("small", np.where(np.arange(32) == 3, 1000, 1e-6).astype(np.float32)[None])
    found = [lutkern.compare_files(*files, importance=i, model=False).tensors for i in (None, importance)]
    assert [[tensor.name for tensor in order] for order in found] == [
        ["broken", "large", "small"],
        ["broken", "small", "large"],
    ]


def test_json_holds_numbers_or_none(tmp_path: Path) -> None:
    w, zeros = weight(2, 32), np.zeros((2, 32), np.float32)
    a = write(tmp_path / "a.gguf", {"w": zeros, "v": w})
    b = write(tmp_path / "b.gguf", {"w": w, "v": lutkern.pack(w, "q8_0"), "x": w})
    found = lutkern.compare_files(a, b, model=False).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    first = {"name": "w", "shape": [2, 32], "format_a": "f32", "format_b": "f32", "rmse": None, "cosine": None}
    assert first.items() <= found["tensors"][0].items()
    assert found["tensors"][1]["rmse"] > 0
    assert found["formats"]["q8_0"]["bits_b"] == 8.5
    assert found["skipped"] == [{"name": "x", "reason": "only in B"}]
    assert (found["model"], found["model_skipped"]) == (None, "it was not asked for")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 0}, "compare_files: windows is 0, expected at least 1"),
        ({"tokens": 1}, "compare_files: tokens is 1, expected at least 2"),
        (
            {"match": "("},
            "compare_files: match is '(' (missing ), unterminated subpattern at position 0), expected a regular "
            "expression",
        ),
        (
            {"match": "nothing"},
            "compare_files: no tensor whose name matches 'nothing' can be compared, expected at least one",
        ),
    ],
)
def test_option_errors(
    pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        lutkern.compare_files(*pair[:2], **options)
    assert str(error.value) == message


def test_nothing_in_common(tmp_path: Path) -> None:
    a, b = (write(tmp_path / f"{name}.gguf", {name: weight(2, 32)}) for name in "ab")
    message = "^compare_files: no tensor can be compared, expected at least one; 'a': only in A$"
    with pytest.raises(ValueError, match=message):
        lutkern.compare_files(a, b)


def test_missing_files(tmp_path: Path, pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]]) -> None:
    for files, options in (((pair[0], tmp_path / "no"), {}), (pair[:2], {"importance": tmp_path / "no"})):
        with pytest.raises(FileNotFoundError):
            lutkern.compare_files(*files, **options)


def test_a_warning_of_the_importance_comes_through(pair: tuple[Path, Path, dict[str, Floats], dict[str, Any]]) -> None:
    importance = lutkern.Importance()
    importance.update("blk.0.up", np.zeros((4, 512), np.float32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lutkern.compare_files(*pair[:2], importance=importance, model=False)
    (warning,) = caught
    assert str(warning.message) == "Importance.for_weight: 'blk.0.up': no importance, replaced by ones"
