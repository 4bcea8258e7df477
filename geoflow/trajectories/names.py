"""What walks are called among others."""

from __future__ import annotations

from collections.abc import Sequence

OF_SEED, OF_SEEDS = "seed ", "seeds "


def walk_name(seed: int, number: int = 0) -> str:
    """What a walk is called among others: by its seed, or by its place where it has none."""
    return f"{OF_SEED}{seed}" if seed >= 0 else f"walk {number + 1}"


def walk_called(seeds: Sequence[int], number: int) -> str:
    """What one of several walks is called: by its place, too, where others have its seed."""
    given = [int(seed) for seed in seeds]
    name = walk_name(given[number], number)
    twice = given[number] >= 0 and given.count(given[number]) > 1
    return f"{name}, walk {number + 1}" if twice else name


def the_walk(name: str) -> str:
    """A walk by its name, in a sentence: a place or a file is the walk, a seed is not."""
    return f"the walk of {name}" if name.startswith((OF_SEED, OF_SEEDS)) else name


def listed(names: Sequence[str], most: int) -> str:
    """Names of some walks, in words, the first few."""
    shown = names[:most]
    if names[1:] and all(name.startswith(OF_SEED) for name in shown):
        shown = [name.removeprefix(OF_SEED) for name in shown]
        shown[0] = f"{OF_SEEDS}{shown[0]}"
    return f"{', '.join(shown)}{', …' * (len(names) > most)}"
