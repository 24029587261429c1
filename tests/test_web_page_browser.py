"""The page of a report in Chromium without a window: filter, open a case, copy a command, by hand and by keyboard."""

import pytest

from harness.reports import web_page
from tests import made_up_reports
from tests.browser import chromium, needs_chromium

__all__ = ["chromium"]

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return name -> address of a page."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ("failing", "gate", "sweep", "mutants"):
        (folder / f"{name}.html").write_text(web_page.write(getattr(made_up_reports, name)()))
    return {file.stem: f"file://{file}" for file in folder.iterdir()}


COUNT = "document.getElementById('count').textContent"
SHOWN = "[...document.querySelectorAll('#body .open')].map((one) => one.textContent)"


def choose(chromium, id, value):
    event = "input" if id == "text" else "change"
    chromium.run(
        f"(() => {{ const one = document.getElementById({id!r}); one.value = {value!r};"
        f" one.dispatchEvent(new Event({event!r}, {{bubbles: true}})); }})()"
    )


def test_the_table_is_filtered_and_the_address_keeps_it(chromium, pages):
    chromium.go(pages["failing"])
    assert chromium.run(COUNT) == "8 of 10 cases"
    choose(chromium, "status", "all")
    assert chromium.run(COUNT) == "10 of 10 cases"
    choose(chromium, "text", "loss-01 PLAIN")
    assert chromium.run(SHOWN) == ["LOSS-01 plain/add_adapter"]
    address = chromium.run("location.href")
    assert address.endswith("#text=loss-01+PLAIN&status=all")
    chromium.go(address)
    assert chromium.run(SHOWN) == ["LOSS-01 plain/add_adapter"]
    assert chromium.run("document.getElementById('text').value") == "loss-01 PLAIN"
    assert chromium.run("document.getElementById('count').getAttribute('aria-live')") == "polite"


def test_a_cause_shows_its_cases(chromium, pages):
    chromium.go(pages["failing"])
    chromium.run("document.querySelector('a.show').click()")
    chromium.wait(f"{COUNT} === '1 of 10 cases'")
    assert chromium.run("document.activeElement.id") == "rows"


def test_a_case_is_opened_by_keyboard_and_its_command_copied(chromium, pages):
    chromium.go(pages["failing"])
    chromium.run("document.getElementById('cause').focus()")
    chromium.press("Tab")
    assert chromium.run("document.activeElement.textContent") == "LOSS-01 plain/add_adapter"
    chromium.press("Enter", "\r")
    chromium.wait("document.activeElement.getAttribute('aria-expanded') === 'true'")
    assert "open=LOSS-01%2Fplain%2Fadd_adapter" in chromium.run("location.hash")
    assert chromium.run("document.querySelectorAll('tr.detail figure svg[role=img]').length") == 3
    assert chromium.run("document.querySelector('tr.detail .facts') === null")
    chromium.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    chromium.run("document.querySelector('tr.detail button.copy').click()")
    chromium.wait("document.getElementById('said').textContent !== ''")
    assert chromium.run("document.getElementById('said').textContent") == "Copied"
    words = "peft-harness check --clause LOSS-01 -- -k plain/add_adapter"
    assert chromium.run("navigator.clipboard.readText()") == words


def test_a_spec_is_shown_whole(chromium, pages):
    chromium.go(pages["failing"] + "#status=all&text=odd-01&open=ODD-01%2F%3C!--+%3Cscript%3E")
    chromium.run("document.querySelector('tr.detail details').open = true")
    chromium.wait("document.querySelector('tr.detail pre') !== null")
    found = chromium.run("JSON.parse(document.querySelector('tr.detail pre').textContent)")
    assert found == made_up_reports.spec(3)


@pytest.mark.parametrize("name", ["failing", "gate", "sweep", "mutants"])
def test_a_page_runs_nothing_of_the_report_and_needs_no_network(chromium, pages, name):
    chromium.go(pages[name] + "#status=all")
    chromium.run("document.querySelectorAll('#body .open').forEach((one) => one.click())")
    chromium.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert chromium.run("document.title").startswith("peft-harness")
    assert chromium.run("document.querySelectorAll('script').length") == 2
    assert chromium.run("[...document.links].every((one) => ['http:', 'https:', 'file:'].includes(one.protocol))")
    assert chromium.complaints() == []


@pytest.mark.parametrize("name", ["failing", "gate", "sweep", "mutants"])
def test_a_page_fits_400_pixels(chromium, pages, name):
    chromium.go(pages[name] + "#status=all")
    chromium.run("document.querySelectorAll('#body .open').forEach((one) => one.click())")
    chromium.look(400, 800)
    assert chromium.run("document.documentElement.scrollWidth") <= 400
    chromium.ask("Emulation.clearDeviceMetricsOverride")


def test_a_page_is_dark_where_the_reader_wants_it(chromium, pages):
    chromium.go(pages["failing"])
    color = "getComputedStyle(document.body).backgroundColor"
    for dark, expected in ((True, "rgb(15, 20, 25)"), (False, "rgb(255, 255, 255)")):
        chromium.look(dark=dark)
        assert chromium.run(color) == expected


def test_a_page_can_be_printed(chromium, pages):
    chromium.go(pages["failing"])
    assert chromium.printed().startswith(b"%PDF")


def test_a_screen_reader_finds_headings_and_a_table(chromium, pages):
    chromium.go(pages["failing"])
    tree = chromium.ask("Accessibility.getFullAXTree")["nodes"]
    roles = [node.get("role", {}).get("value") for node in tree if not node.get("ignored")]
    names = [node.get("name", {}).get("value", "") for node in tree if node.get("role", {}).get("value") == "heading"]
    assert names[0] == "fails: 2 clauses do not hold" and "Clauses and cases (10)" in names
    assert {"table", "row", "cell", "columnheader", "main", "search", "status", "searchbox", "combobox"} <= set(roles)
