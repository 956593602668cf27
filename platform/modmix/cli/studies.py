"""Status of studies, from the ledger: ``modmix status`` and ``modmix list``."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from modmix.cli.opening import open_ledger, study_name
from modmix.cli.options import Json, Name
from modmix.cli.printing import print_json


def status(study: Name, as_json: Json = False) -> None:
    """Show the status of a study."""
    from modmix import api

    ledger, name = open_ledger(), study_name(study)
    found = api.status(ledger, name)
    if as_json:
        print_json(found)
        return
    print(f"study {name}: {found['state']}")
    parts = ledger.study(name).spec["parts"].values()
    proposes = found["state"] != "finished" and any(part.get("search") for part in parts)
    names = {"total": "proposed so far" if proposes else "in total"}
    for what in ("configurations", "replicates"):
        counts = ", ".join(
            f"{n} {names.get(state, state)}" for state, n in found[what].items() if n
        )
        print(f"  {what:15s}{counts or 'none'}")
    print(f"  trained        {found['trained']}, reused {found['reused']}")
    times = f"{found['wall_seconds']:.0f} s wall clock, {found['device_seconds']:.0f} s on devices"
    print(f"  time           {times}")
    methods = {one.key: one.method for one in ledger.configurations(name)}
    reasons: dict[str, int] = {}
    for replicate in ledger.replicates(name):
        if replicate.state == "failed":
            last = (replicate.reason.strip().splitlines() or ["no reason recorded"])[-1]
            reason = f"{methods[replicate.configuration]}: {last}"
            reasons[reason] = reasons.get(reason, 0) + 1
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:10]:
        print(f"  failed         {count}x {reason}")


def list_studies(as_json: Json = False) -> None:
    """List all studies with their owners and progress."""
    from modmix import api

    ledger = open_ledger()
    found = [
        {
            "owner": record.owner,
            "task": str(record.details.get("task", "")),
            "updated": record.updated,
            **api.status(ledger, record.name),
        }
        for record in ledger.studies()
    ]
    if as_json:
        print_json(found)
        return
    rows = [("study", "owner", "state", "configurations", "models", "updated", "task")]
    rows += [
        (
            one["study"], one["owner"], one["state"], _ended(one["configurations"]),
            _ended(one["replicates"]), f"{datetime.fromtimestamp(one['updated']):%Y-%m-%d %H:%M}",
            one["task"],
        )
        for one in found
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _ended(counts: Mapping[str, int]) -> str:
    """ "40", or "24 of 40 (1 failed)" where some have not ended or have failed."""
    ended, total = counts["done"] + counts["pruned"] + counts["failed"], counts["total"]
    text = str(total) if ended == total else f"{ended} of {total}"
    return f"{text} ({counts['failed']} failed)" if counts["failed"] else text
