"""A headless Chromium, driven over a pipe by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PATIENCE = 60  # seconds for one answer, on a busy machine
_QUIET = (
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


@dataclass
class Browser:
    """A running browser; `commands` and `answers` are its ends of the pipes."""

    commands: int
    answers: int
    _buffer: bytes = b""
    _number: int = 0
    _events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, object] = {
            "id": self._number,
            "method": method,
            "params": parameters,
        }
        if session:
            message["sessionId"] = session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._events.append(answer)

    def events(self, session: str) -> list[dict[str, Any]]:
        """Return the events that a page has sent so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    @contextmanager
    def page(self, file: Path, *, width: int = 1280, height: int = 900) -> Iterator[Page]:
        """Open a file in a new tab; return when its charts are drawn."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.call("Page.navigate", url=file.as_uri())
        page.until("location.protocol === 'file:' && document.readyState === 'complete'")
        page.until("document.querySelector('script[data-chart]:not([data-drawn])') === null")
        yield page
        self.call("Target.closeTarget", targetId=target)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self.answers, 1 << 20)
            assert more, "Chromium has ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


@dataclass(frozen=True)
class Page:
    """A tab."""

    browser: Browser
    session: str

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command to the tab."""
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        """Set the tab's size; a narrow one emulates a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < deadline, (script, self.complaints())
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Return what the console shows, exceptions included."""
        found = []
        for event in self.browser.events(self.session):
            match event["method"]:
                case "Runtime.consoleAPICalled":
                    found.append(str(event["params"]["args"]))
                case "Runtime.exceptionThrown":
                    found.append(str(event["params"]["exceptionDetails"]))
                case "Log.entryAdded":
                    found.append(event["params"]["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return the URLs of everything that the page requested."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events(self.session)
            if event["method"] == "Network.requestWillBeSent"
        ]

    def press(self, key: str) -> None:
        """Press a key on the focused element."""
        text = {"Enter": "\r", " ": " "}.get(key)
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if kind == "keyDown" and text else {}
            code = {"Enter": 13, " ": 32, "Tab": 9}[key]
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **extra,
            )

    def point_at(self, selector: str, *, click: bool = False) -> None:
        """Move the mouse to the middle of an element, and click."""
        x, y = self.run(
            f"(() => {{ const it = document.querySelector({json.dumps(selector)});"
            " it.scrollIntoView({block: 'center'}); const box = it.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, *, whole: bool = False) -> bytes:
        """Return a PNG of the whole tab or of its visible part."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        return base64.b64decode(data)

    def pdf(self) -> bytes:
        """Return the page printed on its own paper."""
        data = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)["data"]
        return base64.b64decode(data)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium with a temporary profile."""
    assert PROGRAM is not None
    reads_commands, commands = os.pipe()
    answers, writes_answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *(PROGRAM, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
            *(*_QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank"),
        ]
        # Chromium reads commands at 3 and answers at 4, which the shell can say.
        redirected = f'exec "$@" 3<&{reads_commands} 4>&{writes_answers}'
        process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command],
            pass_fds=(reads_commands, writes_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        os.close(reads_commands)
        os.close(writes_answers)
        browser = Browser(commands, answers)
        try:
            yield browser
            browser.call("Browser.close")
        finally:
            process.terminate()
            process.wait(PATIENCE)
            os.close(commands)
            os.close(answers)
