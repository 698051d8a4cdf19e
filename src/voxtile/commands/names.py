"""What a sweep and its jobs are called, by the words that differ."""

from __future__ import annotations

from collections.abc import Sequence

NO_MATTER = ("retry=", "inexact=", "workers=", "debug_errors=", "paths.", "logger", "trust=")  # to a run's numbers
ASIDE = (*NO_MATTER, "hydra.", "launch=", "sweep=")  # what says where and how jobs run, and nothing of what they are about
LONGEST = 128  # signs of a name that trackers take


def titles(jobs: Sequence[Sequence[str]]) -> list[str]:
    """The words of each job of a sweep that not all of them have."""
    common = set(jobs[0]).intersection(*jobs) if len(set(map(tuple, jobs))) > 1 else set()
    return [" ".join(word for word in words if word not in common) for words in jobs]


def sweep_name(jobs: Sequence[Sequence[str]]) -> str:
    """What the jobs of a sweep are called together: what differs, and what all have in common; more values change nothing."""
    common = set(jobs[0]).intersection(*jobs)
    differing = dict.fromkeys(word.partition("=")[0] for words in jobs for word in words if word not in common)
    fixed = [word for word in jobs[0] if word in common and not word.startswith(ASIDE)]
    return " ".join([",".join(differing) or "sweep", *fixed])[:LONGEST]
