"""Headless Chromium for tests of pages, driven through the DevTools protocol (chromedevtools.github.io).

The protocol goes through two pipes (``--remote-debugging-pipe``), so that no package and no port is needed: each
message is JSON and ends with a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
_LONGEST = 180.0  # seconds to wait for an answer: only a browser that hangs takes so long


def find_chromium() -> str | None:
    """The program, if it is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Loaded:
    """What happened while a page was loaded and used.

    Attributes:
        errors: what the page or the browser logged as a warning or an error, and exceptions.
        requests: the addresses that were asked for.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """One window of a new browser.

    Args:
        program: see `find_chromium`.
        profile: a new folder for its files.
    """

    def __init__(self, program: str, profile: Path) -> None:
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        self._out, self._in, self._buffer, self._number = ours_out, ours_in, b"", 0
        # The browser reads from descriptor 3 and writes to 4. bash puts the pipes there; the numbers from 10 up are
        # none of these two.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        command = [program, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *map(str, ends), *command],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self.loaded = Loaded()
        self._session, self._is_loaded = "", False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._out)  # the browser ends when nobody can talk to it any more
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def open(self, path: Path, *, width: int, dark: bool = False, scripts: bool = True) -> Loaded:
        """Loads a file. Windows narrower than 600 pixels are those of a phone.

        Returns:
            What happens from now on; it grows while the page is used.
        """
        self.loaded = Loaded()
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._is_loaded = False
        answer = self._call("Page.navigate", url=path.resolve().as_uri())
        assert "errorText" not in answer, answer["errorText"]
        while not self._is_loaded:
            self._receive()
        return self.loaded

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a key, such as Tab or Enter."""
        text = {"Enter": "\r"}.get(key, "")
        codes = {"windowsVirtualKeyCode": {"Enter": 13, "Tab": 9}[key], "key": key, "code": key}
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **codes)
        self._call("Input.dispatchKeyEvent", type="keyUp", **codes)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        """The next message; an event is also noted in `loaded`."""
        end = time.monotonic() + _LONGEST
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 16) if ready else b""
            assert data, "the browser does not answer"
            self._buffer += data
        first, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, values: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._is_loaded = True
        elif event == "Network.requestWillBeSent":
            self.loaded.requests.append(values["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.loaded.errors.append(str(values["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.loaded.errors.append(str(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.loaded.errors.append(values["entry"]["text"])
