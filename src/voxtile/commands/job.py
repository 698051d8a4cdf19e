"""One job of a sweep, as `voxtile.commands.sweep` starts it: `python -m voxtile.commands.job`.

It is told the words that it trains with ("words") and the file in which it leaves what became of it ("report").
"""

from __future__ import annotations

import sys
from pathlib import Path

from voxtile.cases.maps import atomic_text
from voxtile.commands.children import order_of
from voxtile.commands.sweep import Outcome, collecting, report_of
from voxtile.commands.train import train_all


def main() -> int:
    """Trains, and leaves the outcome."""
    order = order_of()
    sys.argv = ["voxtile", "train", *order["words"]]  # what messages tell the user to type
    report = Path(order["report"])

    def leave(outcome: Outcome) -> None:
        atomic_text(report, report_of(outcome))

    with collecting() as outcomes:
        code = train_all(order["words"], leave)
    outcome = outcomes[0] if outcomes else Outcome(order["words"], reason="its configuration cannot be composed")
    outcome.code = code
    leave(outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
