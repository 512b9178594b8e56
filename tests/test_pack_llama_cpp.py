"""Packed files in llama.cpp, where the xllamacpp package is installed: the same next tokens as the NumPy forward."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutkern
from lutkern.demo.evaluate import log_softmax
from tiny_llama import TOKENS, open_model, write_tiny_llama

pytest.importorskip("xllamacpp")

STEPS = 8
# In a process of its own: the server has threads that outlive the call.
PROGRAM = """
import json, sys
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_predict, parameters.warmup, parameters.n_gpu_layers = 96, 8, False, 0
parameters.cpuparams.n_threads = 1
server = xllamacpp.Server(parameters)
request = {"prompt": json.loads(sys.argv[2]), "n_predict": 8, "temperature": 0.0, "n_probs": 5, "ignore_eos": True,
           "cache_prompt": False}
print("RESULT " + json.dumps(server.handle_completions(request)))
"""


def llama_cpp(path: Path) -> dict[str, Any]:
    """Let llama.cpp continue the test's tokens."""
    command = [sys.executable, "-c", PROGRAM, str(path), json.dumps(TOKENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return result


@pytest.mark.parametrize("split", [False, True])
def test_the_same_next_tokens(tmp_path: Path, split: bool) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", tied=False)
    types = ["attn=q8_0", "token_embd=q8_0"]
    size = 100_000 if split else None
    plan = lutkern.pack_file(path, tmp_path / "out.gguf", types=types, preset="2bit", split_size=size)
    assert len(plan.files) == (1 if size is None else 2)
    assert {"iq3_s", "iq4_nl", "q8_0", "f32"} <= set(plan.formats())
    found = llama_cpp(Path(plan.files[0]))
    model, dense, _ = open_model(Path(plan.files[0]))
    tokens = list(TOKENS)
    for entry in found["choices"][0]["logprobs"]["content"]:
        ours = log_softmax(model.logits(tokens, dense)[-1:])[0]
        theirs = {top["id"]: top["logprob"] for top in entry["top_logprobs"]}
        best = np.argsort(-ours)[: len(theirs)]
        # llama.cpp rounds activations to 8 bits; the tokens' log probabilities spread over several nats.
        np.testing.assert_allclose([ours[token] for token in theirs], list(theirs.values()), atol=0.1)
        assert len(set(map(int, best)) & set(theirs)) >= len(theirs) - 1
        tokens.append(entry["id"])
    assert len(tokens) == len(TOKENS) + STEPS
