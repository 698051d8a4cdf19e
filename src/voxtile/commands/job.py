"""One job of a sweep, as `voxtile.commands.sweep` starts it: `python -m voxtile.commands.job`.

It is told the words that it trains with ("words"), or a whole configuration ("config") and what messages tell the user to type
("command"); in which file it leaves what became of it ("report"); and for trackers the name and the kind of what it is a part of
("group", "kind").
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from voxtile.cases.atomic import atomic_text
from voxtile.commands.children import order_of
from voxtile.commands.guard import guarded
from voxtile.commands.sweep import Outcome, collecting, report_of
from voxtile.commands.train import train_all, train_one


def main() -> int:
    """Trains, and leaves the outcome."""
    order = order_of()
    words = order.get("words", [])
    sys.argv = order.get("command") or ["voxtile", "train", *words]  # what messages tell the user to type
    report = Path(order["report"])
    if "group" in order:  # wandb's own variables, which the user may have set
        os.environ.setdefault("WANDB_RUN_GROUP", order["group"])
        os.environ.setdefault("WANDB_JOB_TYPE", order["kind"])

    def leave(outcome: Outcome) -> None:
        atomic_text(report, report_of(outcome))

    with collecting() as outcomes:
        whole = order.get("config")
        patient = order.get("patient", False)
        try:
            code = train_all(words, leave, patient) if whole is None else guarded(lambda: train_one(whole, leave))
        except Exception:  # which the outcome says, too
            traceback.print_exc()
            code = 1
    outcome = outcomes[0] if outcomes else Outcome(words, reason="its configuration cannot be composed")
    outcome.code = code
    leave(outcome)
    return code


if __name__ == "__main__":
    sys.exit(main())
