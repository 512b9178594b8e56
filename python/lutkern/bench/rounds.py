"""Rounds in which contestants take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

_TURN_SECONDS = 0.01  # a turn repeats its step for about this long
_MOST_STEPS = 10_000
_LEAST_ROUNDS = 3
_SETTLE_SECONDS = 0.001  # threads of the one before fall asleep


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

    There are at least 3 rounds, and as many as fit into `seconds`; every other round goes backwards. A turn begins with
    a step that does not count, which wakes threads up and brings the contestant's own tables back into the cache.
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
    once = _turn(contestant, 1, clock)
    return min(max(1, round(_TURN_SECONDS / max(once, 1e-9))), _MOST_STEPS)


def _turn(contestant: Contestant, steps: int, clock: Callable[[], float]) -> float:
    time.sleep(_SETTLE_SECONDS)
    contestant.step()
    start = clock()
    for _ in range(steps):
        contestant.step()
    elapsed = clock() - start
    contestant.rest()
    return elapsed / steps
