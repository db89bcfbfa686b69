"""Writes train.jsonl, validation.jsonl and test.jsonl: dates as people write them, and in ISO 8601.

Every day of some years is used once, so no day of validation or test is in training.
"""

import json
from datetime import date, timedelta
from pathlib import Path
from random import Random

FIRST, DAYS = date(2019, 1, 1), 2000
WAYS = ("{d} {month} {y}", "{month} {d}, {y}", "{d}. {m}. {y}", "the {nth} of {month} {y}")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
SIZES = {"train": 1200, "validation": 60, "test": 200}


def nth(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number in (11, 12, 13) else ending}"


def row(day: date, way: str) -> dict[str, str]:
    """A question and its answer."""
    month = MONTHS[day.month - 1]
    written = way.format(d=day.day, m=day.month, y=day.year, month=month, nth=nth(day.day))
    return {"prompt": f"Write this date as YYYY-MM-DD: {written}", "target": day.isoformat()}


def main() -> None:
    """Write the three files beside this one."""
    chance = Random(0)
    days = [FIRST + timedelta(days=number) for number in range(DAYS)]
    chance.shuffle(days)
    for name, size in SIZES.items():
        taken, days = days[:size], days[size:]
        lines = [json.dumps(row(day, chance.choice(WAYS))) for day in taken]
        Path(__file__).with_name(f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
