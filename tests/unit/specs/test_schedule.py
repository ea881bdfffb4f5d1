"""Floors by the time of day: what is read, and when it holds."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from eagleray.errors import SpecError
from eagleray.specs import ServiceSpec, load
from eagleray.specs.schedule import floor_at, parse

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("schedule", "local", "holds"),
    [
        ("08:00-20:00 min 2", "2026-11-26 08:00", True),
        ("08:00-20:00 min 2", "2026-11-26 07:59", False),
        ("08:00-20:00 min 2", "2026-11-26 20:00", False),
        ("08:00-24:00 min 2", "2026-11-26 23:59", True),
        ("00:00-24:00 min 2", "2026-11-26 00:00", True),
        ("mon-fri 08:00-20:00 min 2", "2026-11-27 12:00", True),  # a Friday
        ("mon-fri 08:00-20:00 min 2", "2026-11-28 12:00", False),
        ("sat-mon 08:00-20:00 min 2", "2026-11-29 12:00", True),
        ("sat,tue 08:00-20:00 min 2", "2026-11-29 12:00", False),
        ("fri 22:00-06:00 min 1", "2026-11-27 22:00", True),
        ("fri 22:00-06:00 min 1", "2026-11-28 05:59", True),
        ("fri 22:00-06:00 min 1", "2026-11-27 05:59", False),
        ("fri 22:00-06:00 min 1", "2026-11-28 22:00", False),
        ("12:00-12:00 min 1", "2026-11-28 03:00", True),
        ("  MON-Fri   08:00-20:00  MIN 2 ", "2026-11-27 12:00", True),
    ],
)
def test_when_it_holds(schedule, local, holds):
    assert (floor_at([schedule], BERLIN, at(local)) is not None) is holds


def test_the_time_is_the_zones_in_summer_and_in_winter():
    for utc, holds in (
        (datetime(2026, 7, 1, 6, 0, tzinfo=UTC), True),  # 08:00 in Berlin
        (datetime(2026, 12, 1, 6, 0, tzinfo=UTC), False),
        (datetime(2026, 12, 1, 7, 0, tzinfo=UTC), True),
    ):
        assert (floor_at(["08:00-20:00 min 2"], BERLIN, utc.timestamp()) is not None) is holds


def test_the_highest_of_several_holds():
    found = floor_at(["08:00-20:00 min 1", "12:00-13:00 min 4"], "UTC", at("2026-11-26 12:30", "UTC"))
    assert found == parse("12:00-13:00 min 4")
    assert found.minimum == 4
    assert floor_at([], "UTC", 0.0) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('schedules = ["08:00-20:00 min 1"]', "time_zone: schedules need one"),
        ('schedules = ["8-20 min 1"]', r"schedules.0: '8-20 min 1' is no schedule; write it as \"08:00"),
        ('schedules = ["08:00-20:00"]', "is no schedule"),
        ('schedules = ["08:60-20:00 min 1"]', "08:60 is no time of day"),
        ('schedules = ["08:00-24:01 min 1"]', "24:01 is no time of day"),
        ('schedules = ["24:00-08:00 min 1"]', "write 00:00"),
        ('schedules = ["mon-fry 08:00-20:00 min 1"]', "'mon-fry' is no day; write mon, tue"),
        ('schedules = ["08:00-20:00 min 5"]\ntime_zone = "UTC"', r"min 5' exceeds max_replicas \(1\)"),
        ('time_zone = "Europe/Berlim"', "time_zone: 'Europe/Berlim' is no time zone"),
        ('time_zone = "../../etc/passwd"', "is no time zone"),
        ('time_zone = ""', "is no time zone"),
        ("objective_p95_ms = 0", "objective_p95_ms"),
    ],
)
def test_bad_ones_are_told(tmp_path, lines, message):
    path = tmp_path / "service.toml"
    path.write_text(f'kind = "service"\nname = "digits"\n{lines}\n')
    with pytest.raises(SpecError, match=message):
        load(ServiceSpec, path)


def test_good_ones_are_taken(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text(
        'kind = "service"\nname = "digits"\nmax_replicas = 4\nobjective_p95_ms = 50\n'
        'schedules = ["mon-fri 08:00-20:00 min 2"]\ntime_zone = "Europe/Berlin"\n'
    )
    spec = load(ServiceSpec, path)
    assert (spec.objective_p95_ms, spec.schedules, spec.time_zone) == (
        50,
        ("mon-fri 08:00-20:00 min 2",),
        BERLIN,
    )
