"""Headless Chromium, spoken to over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import websocket

#: Names that the browser goes by.
NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60


def executable() -> str | None:
    """The browser's path; ``None`` where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page of the browser, and everything that it said.

    Args:
        address: Of the page's socket.
    """

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._number = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def close(self) -> None:
        """Lets go of the page."""
        self._socket.close()

    def open(self, page: Path) -> None:
        """Loads a file and waits until it is complete."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(json.loads(self._socket.recv()))

    def named(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of a name since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Presses and releases a key."""
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Gives the window a size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    def media(self, kind: str = "", scheme: str = "light") -> None:
        """Chooses ``screen`` or ``print``, and the colours that the user prefers."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(picture["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])


@contextlib.contextmanager
def browsing(program: str, options: Sequence[str] = ()) -> Iterator[Tab]:
    """A browser of its own with one empty page; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",  # tests may run as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            *options,
            "about:blank",
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as browser:
            try:
                with contextlib.closing(Tab(_page_address(browser))) as tab:
                    yield tab
            finally:
                browser.kill()


def _page_address(browser: subprocess.Popen[str]) -> str:
    """The socket of the only page."""
    assert browser.stderr is not None
    lines = []
    for line in browser.stderr:
        lines.append(line)
        if line.startswith("DevTools listening on "):
            address = line.split()[-1]
            break
    else:
        raise AssertionError("the browser ended: " + "".join(lines))
    whole = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
    whole.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    while "result" not in (answer := json.loads(whole.recv())):
        pass
    (page,) = [target for target in answer["result"]["targetInfos"] if target["type"] == "page"]
    whole.close()
    return f"{address.rpartition('/devtools/')[0]}/devtools/page/{page['targetId']}"
