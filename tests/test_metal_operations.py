"""Operations per codeword of the Metal kernels for one token stay within budgets; a text that has more is found."""

from __future__ import annotations

import json

import pytest

from sim.metal import gate

CASES = [("matvec", weight) for weight in gate.FORMATS] + [("moe_up", "iq1_m"), ("moe_down", "iq2_xxs")]


def budget(kernel: str, weight: str) -> float:
    return float(json.loads(gate.BUDGETS.read_text(encoding="utf-8"))[kernel][weight])


def test_every_kernel_and_format_has_a_budget():
    budgets = json.loads(gate.BUDGETS.read_text(encoding="utf-8"))
    assert {kernel: list(weights) for kernel, weights in budgets.items()} == {
        kernel: list(gate.FORMATS) for kernel in gate.CODEWORDS
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_operations_stay_within_their_budget(case):
    found = gate.per_codeword(*case)
    assert 0.9 * budget(*case) < found <= budget(*case)


def test_a_text_with_more_operations_is_over():
    old = "static_cast<float>(as_type<half2>(x).x), acc);"

    def change(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, old.replace("(x)", "(x ^ 1u)"))

    assert gate.per_codeword("matvec", "iq1_m", change) > budget("matvec", "iq1_m")


def test_a_text_that_clang_refuses_is_told():
    with pytest.raises(ValueError, match=r"^gate: .*error: unknown type name 'nothing'"):
        gate.per_codeword("matvec", "iq1_m", lambda text: text + "nothing f();\n")
    with pytest.raises(ValueError, match=r"^gate: no kernel product_any$"):
        gate.blocks_of("", "product_any")
