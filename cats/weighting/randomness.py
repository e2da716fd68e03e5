"""Random numbers of weightings, which are the same in every process, and in a run that was resumed."""

from __future__ import annotations

import random


def random_numbers(seed: int, step: int) -> random.Random:
    """A source of random numbers that depends on the seed and the number of the step only.

    So the number of the step is all the state there is, and a step that is computed again, as after each backward()
    call that accumulates, draws the same numbers.
    """
    return random.Random(f"{seed}/{step}")


def checked_seed(seed: object, name: str) -> int:
    """The seed.

    Raises:
        TypeError: it is not an integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{name}: seed must be an integer, got {seed!r}")
    return seed


def random_orders(tasks: int, seed: int, step: int) -> list[list[int]]:
    """For each of the K tasks, the other K − 1 in random order."""
    source = random_numbers(seed, step)
    orders = [[j for j in range(tasks) if j != i] for i in range(tasks)]
    for order in orders:
        source.shuffle(order)
    return orders
