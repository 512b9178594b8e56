"""Expert shapes of released models: rows x cols of gate and up; down is the transpose."""

from __future__ import annotations

SHAPES = {
    "glm-4.7": (1536, 5120),
    "glm-5.2": (2048, 6144),
    "deepseek-v3": (2048, 7168),
    "qwen3-30b": (768, 2048),
}
FAST_FORMATS = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")
BYTES_TO_ROTATE = 256 << 20  # more than any cache: weights come from memory
