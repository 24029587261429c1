"""`peft-harness trend`: what changed over many reports, how often a drift is found, and how often one is seen in vain."""

import datetime
import html
import json
import os
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from harness.errors import UsageError
from harness.paths import PACKAGE
from harness.reports import nights, trend, trend_page
from harness.reports.trend import EXACT, MEASURED, Series
from tests import command_line

SCHEMA = json.loads((PACKAGE / "reports/trend_schema.json").read_text())

#: The seed of the simulations; README.md has what came out.
SEED = 20261129


def report(night, calls=5000, release=0, verdict="pass", device="cpu", **fields):
    case = {"scenario": "plain", "verdict": "pass", "evidence": {"python_calls": calls, "reason": "x"}, "spec": None}
    return {
        "date": (datetime.datetime(2026, 10, 1, 3) + datetime.timedelta(days=night)).isoformat() + "Z",
        "environment": {"versions": {"transformers": f"5.{release}.0"}, "device": device},
        "clauses": [
            {"id": "RES-01", "verdict": verdict, "cases": []},
            {"id": "PERF-02", "verdict": "pass", "cases": [case]},
        ],
        **fields,
    }


def gate(night, slower, release=0):
    timing = {"tiny": {"wall": {"estimate": slower}, "word": "holds", "margin": 0.01}}
    both = {"verdict": "safe", "findings": [], "timing": timing}
    return {"date": report(night)["date"], "candidate": {"report": report(night, release=release)}, **both}


def written(directory, *reports):
    for number, one in enumerate(reports):
        (directory / f"night-{number:02}.json").write_text(json.dumps(one))
    return directory


def only(directory):
    (track,) = trend.tracks(nights.read(directory)[0])
    return track


# ---- reading ----


def test_nights_are_in_the_order_of_their_dates(tmp_path):
    undated = {key: value for key, value in report(0).items() if key != "date"}
    (tmp_path / "a.json").write_text(json.dumps(report(5)))
    (tmp_path / "report-2026-10-03.json").write_text(json.dumps(undated))
    (tmp_path / "20261002.json").write_text(json.dumps(undated))
    (tmp_path / "old.json").write_text(json.dumps({**undated, "date": "yesterday"}))
    os.utime(tmp_path / "old.json", (0, 0))
    found, left_out = nights.read(tmp_path)
    assert [night.file for night in found] == ["old.json", "20261002.json", "report-2026-10-03.json", "a.json"]
    assert left_out == []


def test_what_is_no_report_is_named_and_left_out(tmp_path):
    written(tmp_path, report(0))
    (tmp_path / "torn.json").write_text('{"clauses": [')
    (tmp_path / "foreign.json").write_text("[1]")
    (tmp_path / "judged.json").write_text('{"laws": []}')
    (tmp_path / "link.json").symlink_to("night-00.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "notes.txt").write_text("of no interest")
    lines = [json.dumps(report(1)), json.dumps(report(2)), '{"torn', json.dumps(report(3))]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    found, left_out = nights.read(tmp_path)
    assert [night.file for night in found] == ["night-00.json", "lines.jsonl, line 1", "lines.jsonl, line 2"]
    assert {file: why[:22] for file, why in left_out} == {
        "folder.json": "is a directory; name a",
        "foreign.json": "is no report of peft-h",
        "judged.json": "is a report of judge; ",
        "lines.jsonl": "line 3: not JSON (Unte",
        "link.json": "is a link, and none is",
        "torn.json": "not JSON (Expecting va",
    }


@pytest.mark.parametrize("names", [[], ["torn.json"]])
def test_a_directory_without_a_report_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{")
    with pytest.raises(UsageError, match=r"has no report in a \*.json or \*.jsonl file" + r" \(torn" * len(names)):
        nights.read(tmp_path)
    with pytest.raises(UsageError, match="no such directory"):
        nights.read(tmp_path / "none")


def test_devices_and_commands_are_not_compared_with_each_other(tmp_path):
    written(tmp_path, report(0), report(1, device="H100", verdict="fail"), gate(2, 0.0), report(3))
    tracks = trend.tracks(nights.read(tmp_path)[0])
    assert [(one.kind, one.device, len(one.nights)) for one in tracks] == [
        ("suites", "cpu", 2),
        ("suites", "H100", 1),
        ("gate", "cpu", 1),
    ]
    assert all(not one.clauses for one in tracks)


# ---- clauses ----


def test_a_clause_that_changed_is_named_with_the_nights_and_the_versions(tmp_path):
    without = {**report(2), "clauses": []}
    written(tmp_path, report(0), report(1), without, report(3, release=1, verdict="fail"), report(4, release=1))
    track = only(tmp_path)
    changes = [(one.before, one.after, one.was, one.is_) for one in track.clauses["RES-01"]]
    assert changes == [(1, 3, "pass", "fail"), (3, 4, "fail", "pass")]
    assert trend.moved(track.nights[1], track.nights[3]) == "transformers 5.0.0 -> 5.1.0"


# ---- exact numbers ----


def test_a_drift_of_three_tenths_of_a_percent_is_found_after_five_releases(tmp_path):
    """One report a release: each change is below the margin of a gate, and all of them together are not."""
    written(tmp_path, *(report(n, calls=int(5000 * 1.003**n), release=n) for n in range(6)))
    (one,) = only(tmp_path).series
    assert (one.kind, one.drifts, len(one.changes)) == (EXACT, True, 5)
    assert one.total == pytest.approx(0.015, abs=0.001)


def test_a_smaller_change_is_listed_and_no_drift(tmp_path):
    written(tmp_path, *(report(n, calls=5000 + 20 * (n > 3), release=n // 4) for n in range(8)))
    (one,) = only(tmp_path).series
    assert (one.drifts, len(one.changes), one.changes[0].after) == (False, 1, 4)


def test_a_number_that_grew_from_nothing_drifts(tmp_path):
    written(tmp_path, *(report(n, calls=n // 2, release=n // 2) for n in range(4)))
    (one,) = only(tmp_path).series
    assert one.drifts and one.total is None


def test_a_number_that_differs_on_the_same_versions_is_measured(tmp_path):
    written(tmp_path, *(report(n, calls=5000 + n % 2) for n in range(8)))
    (one,) = only(tmp_path).series
    assert (one.kind, one.drifts) == (MEASURED, False)


def test_what_stays_the_same_is_counted(tmp_path):
    track = only(written(tmp_path, *(report(n) for n in range(3))))
    assert (track.series, track.steady) == ([], 1)


# ---- measured numbers ----


def drifts(values, false_alarms=trend.FALSE_ALARMS):
    one = Series("time", list(range(len(values))), [1 + value for value in values], MEASURED)
    trend.judge(one, false_alarms)
    return one


def nightly(random, noise, count=42, nights_a_release=7, drift=0.0):
    return drift * (np.arange(count) // nights_a_release) + random.normal(0, noise, count)


def rate(random, times, **settings):
    return sum(drifts(nightly(random, **settings)).drifts for _ in range(times)) / times


@pytest.mark.parametrize("times", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_how_often_a_drift_is_seen_in_vain(times):
    random = np.random.default_rng(SEED)
    found = rate(random, times, noise=0.005)
    # Four standard errors above what is allowed.
    assert found <= trend.FALSE_ALARMS + 4 * (trend.FALSE_ALARMS / times) ** 0.5


@pytest.mark.parametrize("times", [100, pytest.param(5_000, marks=pytest.mark.slow)])
def test_how_often_a_drift_is_found_after_five_releases(times):
    """0.3 % a release, five releases after the first, a week each. A night's interval of the gate is 0.5 % wide."""
    random = np.random.default_rng(SEED)
    assert rate(random, times, noise=0.005, drift=0.003) >= 0.99


def test_the_amount_and_the_night_of_a_step_are_found():
    random = np.random.default_rng(SEED)
    values = 0.02 * (np.arange(40) >= 25) + random.normal(0, 0.003, 40)
    one = drifts(values)
    (change,) = one.changes
    assert one.drifts and abs(change.after - 25) <= 1
    assert change.is_ - change.was == pytest.approx(0.02, abs=0.003)
    assert one.low < one.total < one.high


def test_the_chance_of_a_false_alarm_is_shared_by_all_measured_numbers(tmp_path):
    random = np.random.default_rng(SEED)
    alone = [0.003, 0.006, 0.009, 0.012, 0.015, 0.018]
    assert drifts(alone).chance == pytest.approx(2 / 720) and drifts(alone).drifts
    for number, slower in enumerate(alone):
        many = gate(number, slower)
        for shape in range(20):
            many["timing"][f"shape-{shape}"] = {"wall": {"estimate": float(random.normal(0, 0.004))}}
        (tmp_path / f"{number:02}.json").write_text(json.dumps(many))
    found = {one.name: one for one in only(tmp_path).series}
    assert not found["step of tiny: wall time beside the baseline's"].drifts


def test_few_reports_of_a_measured_number_are_not_judged(tmp_path):
    track = only(written(tmp_path, *(gate(n, 0.001 * n + 0.0001) for n in range(trend.FEWEST - 1))))
    (one,) = [one for one in track.series if one.kind == MEASURED]
    assert one.total is None and not one.drifts
    assert "not judged, 5 reports" in trend_page.sentence(one, track)


# ---- the command ----


def test_the_command_writes_a_page_a_plot_and_json(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("nights").mkdir()
    hostile = "<script>alert('&')</script>"
    reports = [report(n, calls=int(5000 * 1.003**n), release=n, device=hostile) for n in range(5)]
    reports.append(report(5, calls=5100, release=5, verdict="fail", device=hostile))
    for one in reports:
        one["clauses"][1]["cases"][0]["scenario"] = f"$\\frac{hostile}"
    written(Path("nights"), *reports)
    Path(f"nights/{hostile.replace('/', '')}.json").write_text("{")
    code, out, err = command_line.run("trend", "nights", "--html", "t.html", "--png", "t.png", "--json", "t.json")
    assert (code, err) == (0, "") and "1 number drifted" in out and "left out: <script>" in out
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(Path("t.json").read_text()))
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")
    page = Path("t.html").read_text()
    assert "<script" not in page and html.escape(hostile, quote=True).replace("&#x27;", "&#39;") in page
    # It loads nothing: the only addresses are inside of it.
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page) and "default-src 'none'" in page
    assert "RES-01" in page and "transformers 5.4.0 -&gt; 5.5.0" in page


def test_wrong_usage_is_one_sentence(tmp_path):
    code, out, err = command_line.run("trend", tmp_path)
    assert (code, out) == (2, "") and "has no report" in err
