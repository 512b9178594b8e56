"""The NumPy reference: the naive packer, and the generated codebooks that it searches."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lutkern
from lutkern import reference
from lutkern.reference.pack import FLOAT_PACKERS, PACKERS
from reference_samples import FLOAT, X, gaussian, gguf_dequantize, gguf_type

ROOT = Path(__file__).resolve().parents[1]
PACKABLE = [name for name in reference.FORMATS if name in (*PACKERS, *FLOAT_PACKERS)]

# Relative RMSE on Gaussian weights that no packer may exceed.
LIMITS = {
    **{"iq1_s": 0.46, "iq1_m": 0.43, "iq2_xxs": 0.34, "iq2_xs": 0.30, "iq2_s": 0.25, "iq3_xxs": 0.19, "iq3_s": 0.14},
    **{"tq1_0": 0.46, "tq2_0": 0.46, "q2_k": 0.29, "q3_k": 0.16, "q4_k": 0.08, "q5_k": 0.04, "q6_k": 0.02},
    **{"iq4_nl": 0.08, "iq4_xs": 0.08, "mxfp4": 0.12, "q4_0": 0.09, "q4_1": 0.08, "q5_0": 0.045, "q5_1": 0.04},
    **{"q8_0": 0.006},
    **{"bf16": 0.002, "f16": 0.0004, "f32": 0.0},
}


def relative_rmse(w: npt.NDArray[np.float32], restored: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(w - restored) / np.linalg.norm(w))


def test_the_reference_packs_what_the_library_packs() -> None:
    assert [fmt.name for fmt in lutkern.formats() if fmt.can_pack] == PACKABLE


@pytest.mark.parametrize("name", PACKABLE)
def test_pack_then_dequantize_is_close(name: str) -> None:
    w = gaussian(16, 512) / 50
    blocks = reference.pack(w, name)
    assert (blocks.dtype, blocks.shape) == (np.uint8, (16, reference.FORMATS[name].row_bytes(512)))
    assert relative_rmse(w, gguf_dequantize(blocks, name)) <= LIMITS[name]


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0", "q8_0", *FLOAT])
def test_pack_of_what_was_packed_is_the_same(name: str) -> None:
    blocks = reference.pack(gaussian(8, 512) / 50, name)
    np.testing.assert_array_equal(reference.pack(reference.dequantize(blocks, name, (8, 512)), name), blocks)


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
@settings(max_examples=25, deadline=None)
@given(digits=hnp.arrays(np.int8, (1, 256), elements=st.integers(-1, 1)), exponent=st.integers(-12, 12))
def test_ternary_weights_are_packed_without_loss(name: str, digits: npt.NDArray[np.int8], exponent: int) -> None:
    w = digits.astype(np.float32) * np.float32(1.375 * 2.0**exponent)
    np.testing.assert_array_equal(reference.dequantize(reference.pack(w, name), name, (1, 256)), w)


@pytest.mark.parametrize("name", [name for name in PACKABLE if name not in (*FLOAT, "q8_0")])
def test_importance_lowers_the_weighted_error(name: str) -> None:
    w = gaussian(16, 512) / 50
    importance = np.random.default_rng(5).lognormal(0, 2, 512)

    def weighted_error(blocks: npt.NDArray[np.uint8]) -> float:
        return float(np.sum(importance * (reference.dequantize(blocks, name, w.shape) - w) ** 2))

    limit = 0.99 if name == "mxfp4" else 0.95  # mxfp4: one of two exponents is all that importance can choose
    assert weighted_error(reference.pack(w, name, importance)) < limit * weighted_error(reference.pack(w, name))


@pytest.mark.parametrize("useless", [0.0, np.nan, -1.0, np.inf])
def test_useless_importance_is_none(useless: float) -> None:
    w = gaussian(4, 256)
    np.testing.assert_array_equal(reference.pack(w, "iq2_xxs", np.full(256, useless)), reference.pack(w, "iq2_xxs"))


def test_each_expert_has_its_own_importance() -> None:
    w = gaussian(2, 4, 256)
    importance = np.random.default_rng(6).lognormal(0, 1, (2, 256))
    together = reference.pack(w, "iq1_s", importance)
    for expert in range(2):
        np.testing.assert_array_equal(together[expert], reference.pack(w[expert], "iq1_s", importance[expert]))


@pytest.mark.parametrize("name", [name for name in PACKABLE if name not in FLOAT])
def test_columns_are_padded_with_zeros(name: str) -> None:
    w = gaussian(3, 300)
    padded = np.pad(w, ((0, 0), (0, -300 % reference.FORMATS[name].block_size)))
    blocks = reference.pack(w, name)
    assert blocks.shape == reference.pack(padded, name).shape
    assert relative_rmse(w, reference.dequantize(blocks, name, w.shape)) <= 1.1 * LIMITS[name]


@pytest.mark.parametrize("magnitude", [0.0, 1e-38, 1e-9, 1e6, 3e38])
@pytest.mark.parametrize("name", [name for name in PACKABLE if name not in FLOAT])
def test_any_magnitude_packs_to_finite_weights_of_the_right_sign(name: str, magnitude: float) -> None:
    w = np.clip(gaussian(4, 256), -1, 1) * np.float32(magnitude)
    restored = reference.dequantize(reference.pack(w, name), name, w.shape)
    assert np.all(np.isfinite(restored))
    assert np.sum(restored.astype(np.float64) * w) >= 0
    assert float(np.abs(restored).max()) <= 1.3 * float(np.abs(w).max())


def test_bf16_rounds_like_gguf() -> None:
    values = np.random.default_rng(8).integers(0, 2**32, (1, 4096), dtype=np.uint32).view(np.float32)
    finite = np.where(np.isnan(values), np.float32(1), values)
    np.testing.assert_array_equal(reference.pack(finite, "bf16"), quants.quantize(finite, gguf_type("bf16")))
    not_a_number = np.array([[np.nan]], dtype=np.float32)
    assert np.isnan(reference.dequantize(reference.pack(not_a_number, "bf16"), "bf16", (1, 1))).all()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: reference.pack(X, "q8_0"), ValueError,
         "pack: w has shape (512,), expected (rows, cols) or (experts, rows, cols)"),
        (lambda: reference.pack(X[None] * np.nan, "q8_0"), ValueError,
         "pack: w holds a value that is not finite, expected finite weights"),
        (lambda: reference.pack(X[None], "iq1_s", X[:3]), ValueError,
         "pack: importance has shape (3,), expected (512,)"),
        (lambda: reference.pack(X.reshape(2, 1, 256), "iq1_s", X[:3]), ValueError,
         "pack: importance has shape (3,), expected (256,) or (2, 256)"),
    ],
)  # fmt: skip
def test_pack_errors_say_what_came_and_what_was_expected(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)


def test_a_format_without_a_packer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PACKERS, "q3_k")
    with pytest.raises(ValueError, match=r"^pack: q3_k can be read but not packed, expected one of iq1_s .* f32$"):
        reference.pack(X[None], "q3_k")


def generator() -> ModuleType:
    path = ROOT / "csrc" / "formats" / "generate_codebooks.py"
    spec = importlib.util.spec_from_file_location("generate_codebooks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate_codebooks"] = module
    spec.loader.exec_module(module)
    return module


def test_the_generated_codebooks_are_up_to_date() -> None:
    assert generator().main(["--check"]) == 0


def test_the_generator_notices_a_changed_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = generator()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "INC_PATH", tmp_path / "codebooks.inc")
    monkeypatch.setattr(module, "PYTHON_PATH", tmp_path / "_codebooks.py")
    assert module.main([]) == 0
    assert module.main(["--check"]) == 0
    changed = module.INC_PATH.read_text(encoding="ascii").replace(" 43690,", " 43691,")
    module.INC_PATH.write_text(changed, encoding="ascii", newline="\n")
    assert module.main(["--check"]) == 1
    message = "generate_codebooks: codebooks.inc differs from the gguf package's numbers, run the generator\n"
    assert capsys.readouterr().err == message
