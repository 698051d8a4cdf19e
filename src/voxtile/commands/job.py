"""One job of a sweep, as `voxtile.commands.sweep` starts it: `python -m voxtile.commands.job`.

It is told the words that it trains with ("words") and the file in which it leaves what became of it ("report").
"""

from __future__ import annotations

import sys
from pathlib import Path

from voxtile.cases.maps import atomic_text
from voxtile.commands.children import order_of
from voxtile.commands.sweep import collecting, report_of
from voxtile.commands.train import train_all


def main() -> int:
    """Trains, and leaves the outcome."""
    order = order_of()
    sys.argv = ["voxtile", "train", *order["words"]]  # what messages tell the user to type
    with collecting() as outcomes:
        code = train_all(order["words"])
    if outcomes:
        (outcome,) = outcomes
        outcome.code = code
        atomic_text(Path(order["report"]), report_of(outcome))
    return code


if __name__ == "__main__":
    sys.exit(main())
