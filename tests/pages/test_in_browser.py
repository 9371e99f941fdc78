"""The pages of ``hwprune report`` in headless Chromium: drawn, quiet, linked, usable by keyboard, on a phone,
in the dark and in print.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hwprune.cli import main

pytest.importorskip("websocket")
from devtools import Tab, browsing, executable

PROGRAM = executable()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (the Debian package chromium)")

PAGES = ("run", "variants")
DESKTOP, PHONE, PAPER = (1280, 900), (390, 844), (718, 1047)
TAB, ENTER = ("Tab", 9), ("Enter", 13)
FOCUSABLE = "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
#: Geometry of every chart: its box, and how many of its shapes have a length.
CHARTS = """[...document.querySelectorAll('svg.chart')].map(svg => ({
  width: svg.getBoundingClientRect().width,
  height: svg.getBoundingClientRect().height,
  shapes: [...svg.querySelectorAll('path, use')].filter(shape => {
    const box = shape.getBBox(); return box.width + box.height > 0; }).length,
  texts: [...svg.querySelectorAll('text')].filter(text => text.getBBox().width > 0).length,
}))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page about some variants, one of which failed, and that about one of them."""
    out = tmp_path_factory.mktemp("pages") / "out"
    arguments = ["--model", "lenet5", "--epochs", "2", "--batch-size", "128", "--train-images", "512"]
    targets = ["--keep", "0.7", "--keep", "0.4", "--speedup", "1000"]
    result = CliRunner().invoke(main, ["variants", "--out", str(out), *arguments, *targets])
    assert "1 of 3 variants failed" in result.stderr, result.output
    (run,) = out.glob("*keep-0.4")
    return {"run": run / "report.html", "variants": out / "report.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Tab]:
    assert PROGRAM is not None
    with browsing(PROGRAM) as tab:
        yield tab


@pytest.fixture(params=PAGES)
def tab(request: pytest.FixtureRequest, pages: dict[str, Path], browser: Tab) -> Tab:
    """The browser with one of the pages open, unfolded, on a desktop in daylight."""
    browser.size(*DESKTOP)
    browser.media()
    browser.open(pages[request.param])
    browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    _keep_picture(request, browser)
    return browser


def _keep_picture(request: pytest.FixtureRequest, tab: Tab) -> None:
    """Leaves screenshots in the folder that ``HWPRUNE_SCREENSHOTS`` names, for eyes."""
    folder = os.environ.get("HWPRUNE_SCREENSHOTS")
    if folder is None:
        return
    name = request.node.callspec.params["tab"]
    for label, size, media in (
        ("desktop", DESKTOP, ("", "light")),
        ("dark", DESKTOP, ("", "dark")),
        ("phone", PHONE, ("", "light")),
        ("print", PAPER, ("print", "light")),
    ):
        tab.size(*size, mobile=size is PHONE)
        tab.media(*media)
        (Path(folder) / f"{name}-{label}.png").write_bytes(tab.screenshot())
    tab.size(*DESKTOP)
    tab.media()
    (Path(folder) / f"{name}.pdf").write_bytes(tab.pdf())


def test_the_page_says_nothing_on_the_console_and_asks_the_network_for_nothing(tab: Tab) -> None:
    assert tab.named("Runtime.exceptionThrown") == []
    assert tab.named("Runtime.consoleAPICalled") == []
    assert tab.named("Log.entryAdded") == []
    asked = [event["request"]["url"] for event in tab.named("Network.requestWillBeSent")]
    assert asked == [tab.evaluate("location.href")]


def test_every_chart_is_drawn(tab: Tab) -> None:
    charts = tab.evaluate(CHARTS)
    assert len(charts) >= 2
    for chart in charts:
        assert chart["width"] > 200
        assert chart["height"] > 100
        assert chart["shapes"] >= 3
        assert chart["texts"] >= 4
    duplicates = tab.evaluate(
        "(ids => ids.filter((id, at) => ids.indexOf(id) !== at))"
        "([...document.querySelectorAll('[id]')].map(part => part.id))"
    )
    assert duplicates == [], "charts that share ids show each other's shapes"


def test_every_link_leads_somewhere(tab: Tab) -> None:
    links = tab.evaluate("[...document.querySelectorAll('a[href]')].map(link => link.href)")
    here = tab.evaluate("location.href").partition("#")[0]
    assert len(links) >= 4
    for link in links:
        page, _, fragment = link.partition("#")
        if page == here:
            assert tab.evaluate(f"document.getElementById({fragment!r}) !== null"), link
        else:
            assert urlsplit(page).scheme == "file", link
            assert Path(unquote(urlsplit(page).path)).is_file(), link


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(tab: Tab) -> None:
    count = tab.evaluate(f"{FOCUSABLE}.length")
    tab.evaluate("document.activeElement.blur()")
    for expected in range(count):
        tab.press(*TAB)
        assert tab.evaluate(f"{FOCUSABLE}.indexOf(document.activeElement)") == expected
        outline = tab.evaluate(
            "(style => [style.outlineStyle, style.outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert outline[0] != "none"
        assert outline[1] != "0px"
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')].every(part => part.tabIndex === 0 && part.ariaLabel)"
    )


def test_the_page_tells_all_that_a_reader_asks(pages: dict[str, Path]) -> None:
    for page in pages.values():
        text = page.read_text()
        for heading in ("What was pruned, and why", "How to reproduce", "Predicted"):
            assert heading in text
        for fact in ("were least worth their cost", "kept whole: network output", "Accuracy", "epoch"):
            assert fact in text
    assert "hwprune variants --model lenet5 --device" in pages["variants"].read_text()
    assert "--fine-tune-epochs 1" in pages["variants"].read_text()


def test_enter_on_a_link_goes_to_its_section(tab: Tab) -> None:
    tab.evaluate("document.querySelector('nav li:last-child a').focus()")
    tab.press(*ENTER)
    fragment = tab.evaluate("location.hash")
    assert fragment == tab.evaluate("document.querySelector('nav li:last-child a').hash")
    assert tab.evaluate(f"document.querySelector({fragment!r}).getBoundingClientRect().top") < DESKTOP[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_paper_follow_the_colour_scheme(tab: Tab, scheme: str) -> None:
    tab.media("", scheme)
    picture = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))
    paper = float(np.median(picture))
    assert paper > 240 if scheme == "light" else paper < 60
    inks = tab.evaluate(
        "[...document.querySelectorAll('body, svg.chart text, svg.chart .axis path')].map(part => {"
        " const style = getComputedStyle(part), kind = part.localName;"
        " return kind === 'path' ? style.stroke : kind === 'text' ? style.fill : style.color"
        "})"
    )
    assert len(set(inks)) == 1, "charts are drawn in another ink than the text"
    assert inks[0] == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")


def test_nothing_is_wider_than_a_phone(tab: Tab) -> None:
    tab.size(*PHONE, mobile=True)
    assert tab.evaluate("innerWidth") == PHONE[0]
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    small = tab.evaluate(
        "[...document.querySelectorAll('p, td, th, li, figcaption')]"
        ".filter(part => parseFloat(getComputedStyle(part).fontSize) < 12).length"
    )
    assert small == 0


def test_print_shows_everything_and_no_navigation(tab: Tab) -> None:
    tab.media("print")
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".every(part => getComputedStyle(part).overflowX === 'visible')"
    )
    assert tab.pdf().startswith(b"%PDF-")
