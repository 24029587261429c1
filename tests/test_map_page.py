"""The page of the table in Chromium without a window: views, cells, differences, and the address that keeps them."""

import pytest

from harness.map import web
from tests.browser import chromium, needs_chromium
from tests.made_up_tables import line, result, table

__all__ = ["chromium"]

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    bad = '</script><script>document.title="run"</script><b>'
    odd = table(result("5.3.0", fails=["ACC-01"]), result("5.4.0", state="could not run", sentence=bad))
    odd["cells"][1]["causes"][0]["sentence"] = odd["cells"][1]["clauses"]["ACC-01"]["seen"] = bad
    odd["cells"][1]["requirements"] = f"transformers==5.3.0{bad}"
    for name, body in (("line", line()), ("odd", odd), ("empty", table())):
        (folder / f"{name}.html").write_text(web.write(body))
    return {file.stem: f"file://{file}" for file in folder.iterdir()}


COUNT = "document.getElementById('count').textContent"


def choose(chromium, id, value):
    chromium.run(
        f"(() => {{ const one = document.getElementById({id!r}); one.value = {value!r};"
        " one.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def square(row, col):
    words = f"transformers {row}, peft {col}:"
    return f"[...document.querySelectorAll('#table button')].find((one) => one.title.startsWith('{words}'))"


def test_a_cell_has_a_colour_and_its_causes_and_opens(chromium, pages):
    chromium.go(pages["line"])
    count = chromium.run(COUNT)
    assert count.startswith("7 stacks: ") and all(
        words in count for words in ("4 holds", "2 fails", "1 cannot be made")
    )
    assert chromium.run(f"{square('5.3.0', '0.18.1')}.className + {square('5.3.0', '0.18.1')}.textContent") == "fails1"
    assert chromium.run(f"{square('5.2.0', '0.18.1')}.className + {square('5.2.0', '0.18.1')}.textContent") == "holds0"
    assert chromium.run(f"{square('5.9.0', '0.10.0')}.className") == "unmade"
    chromium.run(f"{square('5.24.0', '0.21.2')}.click()")
    said = chromium.run("document.getElementById('detail').textContent")
    assert "wants peft >= 0.22.0" in said and "the cause of LOSS-01" in said and "2 cores" in said
    assert 'peft-harness check --with "transformers==5.24.0' in said and "--clause ACC-01" in said


def test_the_address_keeps_the_view(chromium, pages):
    chromium.go(pages["line"])
    choose(chromium, "clause", "RES-01")
    choose(chromium, "rows", "accelerate")
    choose(chromium, "cols", "transformers")
    chromium.run("[...document.querySelectorAll('#table button')][0].click()")
    address, seen = chromium.run("location.href"), chromium.run("document.getElementById('detail').textContent")
    chromium.go(address)
    assert "clause=RES-01" in address and chromium.run("document.getElementById('rows').value") == "accelerate"
    assert chromium.run("document.getElementById('detail').textContent") == seen
    assert "5 holds" in chromium.run(COUNT) and "1 fails" in chromium.run(COUNT)


def test_kinds_of_runs_are_filtered(chromium, pages):
    chromium.go(pages["line"] + "#route=get_peft_model")
    assert "fails" not in chromium.run(COUNT)
    chromium.go(pages["line"] + "#route=add_adapter")
    assert "2 fails" in chromium.run(COUNT)
    chromium.go(pages["line"] + "#clause=ACC")
    assert chromium.run("document.getElementById('clause').value") == "ACC"


def test_two_stacks_are_compared(chromium, pages):
    chromium.go(pages["line"])
    for id, words in (("a", "transformers==5.2.0"), ("b", "transformers==5.3.0")):
        value = chromium.run(
            f"[...document.getElementById({id!r}).options].find((one) => one.text.startsWith({words!r})).value"
        )
        choose(chromium, id, value)
    said = chromium.run("document.getElementById('difference').textContent")
    assert (
        "transformers 5.2.0 \u2192 5.3.0. 1 of 3 clauses differ." in said and "ACC-01holdsfailsACC-01 is broken" in said
    )
    chromium.go(chromium.run("location.href"))
    assert chromium.run("document.getElementById('difference').textContent") == said


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen_scrolls_tables_and_not_the_page(chromium, pages, dark):
    chromium.go(pages["line"])
    chromium.run(f"{square('5.24.0', '0.21.2')}.click()")
    for id, at in (("a", 1), ("b", 3)):
        choose(chromium, id, chromium.run(f"document.getElementById({id!r}).options[{at}].value"))
    try:
        chromium.look(400, 900, dark)
        assert chromium.run("document.documentElement.scrollWidth") <= 400
        back, text = chromium.run(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        light = [sum(int(part) for part in one[4:-1].split(",")) for one in (back, text)]
        assert (light[0] < light[1]) == dark
    finally:
        chromium.look()


def test_the_page_says_since_which_release_a_clause_fails(chromium, pages):
    chromium.go(pages["line"])
    body = chromium.run("document.body.textContent")
    assert "transformers 5.3.0 (holds in 5.2.0 and in 5.4.0), 5.24.0 (holds in 5.23.0)" in " ".join(body.split())


@pytest.mark.parametrize("name", ["line", "odd", "empty"])
def test_a_page_runs_nothing_of_the_table_and_needs_no_network(chromium, pages, name):
    chromium.go(pages[name])
    chromium.run("document.querySelectorAll('#table button').forEach((one) => one.click())")
    assert chromium.run("document.title").startswith("peft-harness map")
    assert chromium.complaints() == []
