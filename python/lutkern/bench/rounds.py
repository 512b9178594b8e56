"""Rounds in which contestants take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

_TURN_SECONDS = 0.01  # a turn repeats its step for about this long
_LONG_SECONDS = 0.1  # a step as long as this needs no other before it
_MOST_STEPS = 10_000
_LEAST_ROUNDS = 3
_SETTLE_SECONDS = 0.005  # threads of the one before, OpenMP's above all, stop to spin


class Contestant(Protocol):
    """Something that can be measured."""

    def step(self) -> None:
        """Do it once, with the next weights."""

    def rest(self) -> None:
        """Stop to use the processor until the next step."""

    def close(self) -> None:
        """Give threads and memory back."""


def clock_of(name: str) -> Callable[[], float]:
    """Return the function that tells the time of a clock: ``"wall"`` or ``"cpu"``."""
    return time.perf_counter if name == "wall" else time.thread_time


def take_turns(contestants: Sequence[Contestant], seconds: float, clock: Callable[[], float]) -> list[list[float]]:
    """Return how long one step took, for each contestant and in each round.

    There are at least 3 rounds, and as many as fit into `seconds`; every other round goes backwards. A turn of short
    steps begins with one that does not count: it wakes threads up and brings tables back into the cache.
    """
    steps = [_steps_of_a_turn(contestant, clock) for contestant in contestants]
    found: list[list[float]] = [[] for _ in contestants]
    end = time.perf_counter() + seconds
    order = list(range(len(contestants)))
    while len(found[0]) < _LEAST_ROUNDS or time.perf_counter() < end:
        for i in order:
            found[i].append(_turn(contestants[i], steps[i], clock))
        order.reverse()
    return found


def _steps_of_a_turn(contestant: Contestant, clock: Callable[[], float]) -> int:
    """Return how many steps a turn counts; 0: one, and none before it."""
    contestant.step()
    once = _turn(contestant, 0, clock)
    return 0 if once > _LONG_SECONDS else min(max(1, round(_TURN_SECONDS / max(once, 1e-9))), _MOST_STEPS)


def _turn(contestant: Contestant, steps: int, clock: Callable[[], float]) -> float:
    time.sleep(_SETTLE_SECONDS)
    if steps > 0:
        contestant.step()
    steps = max(1, steps)
    start = clock()
    for _ in range(steps):
        contestant.step()
    elapsed = clock() - start
    contestant.rest()
    return elapsed / steps
