"""The pages of ``hwprune report`` in headless Chromium: drawn, quiet, linked, usable by keyboard, on a phone,
in the dark and in print.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from hwprune.cli import main
from hwprune.report import RunFolder
from hwprune.run_page import CURVES, target_label
from hwprune.variants_charts import pareto_front
from hwprune.variants_page import VariantsFolder, read_folder

pytest.importorskip("websocket")
from devtools import Tab, browsing, executable

PROGRAM = executable()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium (the Debian package chromium)")

PAGES = ("run", "variants", "devices")
DESKTOP, PHONE, PAPER = (1280, 900), (390, 844), (718, 1047)
TAB, ENTER, SPACE = ("Tab", 9), ("Enter", 13), (" ", 32)
FOCUSABLE = "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')]"
#: Every chart: what it is, its box, its texts that show, and the marked points within its axes.
CHARTS = """[...document.querySelectorAll('svg.chart')].map(svg => ({
  title: svg.ariaLabel,
  width: svg.getBoundingClientRect().width,
  height: svg.getBoundingClientRect().height,
  points: [...svg.querySelectorAll('use')].filter(
    mark => !mark.closest('[id*="matplotlib.axis"], [id*="legend"]') && mark.getBBox().width > 0).length,
  texts: [...svg.querySelectorAll('text')].filter(
    text => text.getBBox().width > 0).map(text => text.textContent),
}))"""
FOLD = "document.querySelectorAll('details').forEach(part => { part.open = false; })"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page about one variant, about some with one out of reach, and about several devices."""
    out = tmp_path_factory.mktemp("pages") / "out"
    arguments = ["--model", "lenet5", "--epochs", "2", "--batch-size", "128", "--train-images", "512"]
    targets = ["--keep", "0.7", "--keep", "0.4", "--speedup", "1000"]
    result = CliRunner().invoke(main, ["variants", "--out", str(out), *arguments, *targets])
    assert "1 of 3 variants failed" in result.stderr, result.output
    (run,) = out.glob("*keep-0.4")
    several = out.parent / "devices"
    _for_a_second_device(out, several)
    folders = {"run": run, "variants": out, "devices": several}
    return {name: folder / "report.html" for name, folder in folders.items()}


def _for_a_second_device(out: Path, several: Path) -> None:
    """Copies a folder of variants and tells those that were made a second time, of a device that missed."""
    shutil.copytree(out, several)
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in [each for each in manifest["variants"] if each["status"] == "done"]:
        name, hardware = f"{entry['name']}-again", {"vendor": "any", "model": "", "isa": "other", "cores": 1}
        shutil.copytree(out / entry["name"], several / name)
        copy = {**entry, "name": name, "device": "second", "hardware": hardware}
        manifest["variants"].append({**copy, "status": "missed", "reason": "it was too slow"})
    (several / "manifest.json").write_text(json.dumps(manifest))
    assert CliRunner().invoke(main, ["report", str(several)]).exit_code == 0


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


def test_every_chart_is_drawn_with_all_its_points(tab: Tab) -> None:
    drawn = tab.evaluate(CHARTS)
    page = Path(unquote(urlsplit(tab.evaluate("location.href")).path))
    found = read_folder(page.parent)
    expected = _of_run(found) if isinstance(found, RunFolder) else _of_variants(found)
    assert {chart["title"]: chart["points"] for chart in drawn} == expected
    assert len(drawn) == len(expected)
    for chart in drawn:
        assert chart["width"] > 200
        assert chart["height"] > 100
        assert len(chart["texts"]) >= 4
    if isinstance(found, VariantsFolder):
        texts = {chart["title"]: chart["texts"] for chart in drawn}
        for entry in found.measured:
            assert {"dense", target_label(entry["target"])} <= set(texts[f"Accuracy on {entry['device']}"])
    duplicates = tab.evaluate(
        "(ids => ids.filter((id, at) => ids.indexOf(id) !== at))"
        "([...document.querySelectorAll('[id]')].map(part => part.id))"
    )
    assert duplicates == [], "charts that share ids show each other's shapes"


def _of_run(run: RunFolder) -> dict[str, int]:
    """The charts of the page of a run, and how many points each has."""
    return {"Accuracy against latency": 2, **_of_training(run, run.record["model"])}


def _of_training(run: RunFolder, of: str) -> dict[str, int]:
    layers = [layer for layer in run.record["layers"] if layer["staircase"]]
    return {
        **{f"Latency over the width of {layer['name']}, {of}": 1 for layer in layers},
        **{f"{label} per epoch, {of}": len(run.history) for _, label in CURVES},
    }


def _of_variants(folder: VariantsFolder) -> dict[str, int]:
    """The charts of the page of variants of one model, and how many points each has."""
    expected = {"Predicted against measured": 2 * len(folder.measured)}
    for device in {entry["device"] for entry in folder.measured}:
        entries = [entry for entry in folder.measured if entry["device"] == device]
        networks = [entries[0]["dense"], *(entry["slim"] for entry in entries)]
        front = pareto_front([(each["latency_us"]["median"], each["accuracy"]) for each in networks])
        expected[f"Accuracy on {device}"] = len(networks) + len(front)
    for entry in folder.measured:
        expected |= _of_training(RunFolder.read(folder.path / entry["name"]), entry["name"])
    return expected


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
    assert "--fine-tune-epochs" not in pages["variants"].read_text()  # those of the targets differ by default


def test_enter_on_a_link_goes_to_its_section(tab: Tab) -> None:
    tab.evaluate("document.querySelector('nav li:last-child a').focus()")
    tab.press(*ENTER)
    fragment = tab.evaluate("location.hash")
    assert fragment == tab.evaluate("document.querySelector('nav li:last-child a').hash")
    assert tab.evaluate(f"document.querySelector({fragment!r}).getBoundingClientRect().top") < DESKTOP[1]


def test_a_variant_is_unfolded_by_keyboard_and_by_its_link(pages: dict[str, Path], browser: Tab) -> None:
    browser.size(*DESKTOP)
    browser.media()
    browser.open(pages["devices"])
    unfolded = "[...document.querySelectorAll('details')].map(part => part.open)"
    assert browser.evaluate(unfolded) == [False] * 4
    browser.evaluate("document.querySelector('summary').focus()")
    for key in (ENTER, SPACE, SPACE):
        before = browser.evaluate(unfolded)[0]
        browser.press(*key)
        assert browser.evaluate(unfolded) == [not before, False, False, False]
    browser.evaluate(FOLD)
    browser.evaluate("[...document.querySelectorAll('td a')].at(-1).focus()")
    browser.press(*ENTER)
    assert browser.evaluate(unfolded) == [False, False, False, True]
    top = browser.evaluate("document.querySelector('details[open] p').getBoundingClientRect().top")
    assert -1 < top < DESKTOP[1]


def test_several_devices_are_told_apart(pages: dict[str, Path]) -> None:
    text = pages["devices"].read_text()
    assert "second: measured on" in text
    assert "not on any processor (other): a stand-in" in text
    assert text.count("<td>MISSED</td><td>it was too slow</td>") == 2
    assert "Accuracy against latency: second" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_paper_follow_the_colour_scheme(tab: Tab, scheme: str) -> None:
    tab.media("", scheme)
    picture = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("L"))
    paper = float(np.median(picture))
    assert paper > 240 if scheme == "light" else paper < 60
    inks = tab.evaluate(
        "[...document.querySelectorAll('body, svg.chart text, svg.chart [id*=\"matplotlib.axis\"] use')].map("
        "part => {"
        " const style = getComputedStyle(part), kind = part.localName;"
        " return kind === 'use' ? style.stroke : kind === 'text' ? style.fill : style.color"
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
    tab.evaluate(FOLD)
    folded = "[...document.querySelectorAll('details > :not(summary)')].map(part => part.checkVisibility())"
    assert not any(tab.evaluate(folded))
    tab.media("print")
    assert all(tab.evaluate(folded))
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')]"
        ".every(part => getComputedStyle(part).overflowX === 'visible')"
    )
    assert tab.pdf().startswith(b"%PDF-")
