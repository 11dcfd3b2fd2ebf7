"""A headless Chromium over the DevTools protocol's pipe: no port, no websocket, no driver to install."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The protocol's ends are file descriptors 3 and 4 of the browser; ours are kept out of their way.
LAUNCH = 'exec "$@" 3<&{read} 4>&{write} {read}<&- {write}>&-'
FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--disable-extensions", "--disable-background-networking")  # fmt: skip
LOWEST_DESCRIPTOR = 20
PATIENCE_S = 180.0
# Windows' virtual key codes of keys that are no letters.
KEYS = {"Enter": 13, "Escape": 27, " ": 32, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38,
        "ArrowRight": 39, "ArrowDown": 40, "/": 191, "?": 191}  # fmt: skip
CTRL, SHIFT = 2, 8


def find_chromium() -> str | None:
    """Path of the first Chromium or Chrome on PATH that pairs with bash (which opens the pipe's descriptors)."""
    found = [path for name in NAMES if (path := shutil.which(name))]
    return found[0] if found and shutil.which("bash") else None


class Chromium:
    """One page of one browser; ``events`` are what it reported since the last ``open``. Use as a context manager."""

    def __init__(self, binary: str, profile: Path) -> None:
        theirs_read, self._write = _pipe()
        self._read, theirs_write = _pipe()
        launch = LAUNCH.format(read=theirs_read, write=theirs_write)
        command = ["bash", "-c", launch, "chromium", binary, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs_read, theirs_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self._rest, self._sent, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.kill()
        self._process.wait()

    def send(self, method: str, parameters: dict[str, Any] | None = None) -> Any:
        """Call a DevTools method and return its result. Raises RuntimeError with the browser's words."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._sent:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path | str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a file or URL as a screen of ``width`` CSS pixels (below 500: a phone) and wait until it is loaded."""
        phone = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.events.clear()
        self.send("Page.navigate", {"url": page if isinstance(page, str) else page.as_uri()})
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page. Raises RuntimeError where it throws."""
        answer = self.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript expression is true. Raises RuntimeError if it does not become so."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"never true: {condition}")
            time.sleep(0.02)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key as a keyboard does. modifiers: 2 is Ctrl, 8 is Shift."""
        code = KEYS.get(key) or ord(key.upper())
        for kind in ("keyDown", "keyUp"):
            text = {"text": {"Enter": "\r"}.get(key, key)} if kind == "keyDown" and types_text(key, modifiers) else {}
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers} | text
            self.send("Input.dispatchKeyEvent", event)

    def click(self, selector: str, modifiers: int = 0) -> None:
        """Press and release the mouse in the middle of the first element that matches, which must be on the screen."""
        x, y = self._middle(selector)
        button = {"x": x, "y": y, "button": "left", "clickCount": 1, "modifiers": modifiers}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", {"type": kind} | button)

    def tap(self, selector: str) -> None:
        """Touch the first element that matches."""
        x, y = self._middle(selector)
        self.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        self.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def picture(self) -> bytes:
        """A PNG of what the screen shows."""
        return base64.b64decode(self.send("Page.captureScreenshot", {"format": "png"})["data"])

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.evaluate(f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def reported(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these kinds."""
        return [event["params"] for event in self.events if event.get("method") in methods]

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._read, 1 << 16) if ready else b""
            if not data:
                raise RuntimeError("Chromium said nothing more")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


def types_text(key: str, modifiers: int) -> bool:
    """Whether a key writes something into a field."""
    return key == "Enter" or (len(key) == 1 and not modifiers & CTRL)


def _pipe() -> tuple[int, int]:
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, LOWEST_DESCRIPTOR) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]
