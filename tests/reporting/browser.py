"""A headless Chromium, driven through chromedriver's HTTP interface with the standard library."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = "" if CHROMIUM and CHROMEDRIVER else "needs chromium and chromedriver on the PATH"

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    " --disable-background-networking --disable-component-update --hide-scrollbars"
)


class Browser:
    """A context manager around one browser with a profile of its own."""

    def __init__(self, profile: Path, width: int = 1100, height: int = 900) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._driver = subprocess.Popen([str(CHROMEDRIVER), f"--port={port}"], **quiet)
        self._base = f"http://127.0.0.1:{port}"
        arguments = [
            *_FLAGS.split(),
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ]
        options = {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._session = ""
        deadline = time.monotonic() + 60
        while not self._session:
            try:
                made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": options}})
                self._session = f"/session/{made['sessionId']}"
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > deadline:
                    self._driver.kill()
                    raise
                time.sleep(0.05)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(timeout=30)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def post(self, path: str, **body: Any) -> Any:
        return self._call("POST", self._session + path, body)

    def open(self, page: Path) -> None:
        self.post("/url", url=page.resolve().as_uri())

    def script(self, code: str, *arguments: Any) -> Any:
        """What a function body returns."""
        return self.post("/execute/sync", script=code, args=list(arguments))

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def width(self, pixels: int) -> None:
        size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)

    def media(self, medium: str = "screen", scheme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", media=medium, features=features)

    def without_script(self, off: bool = True) -> None:
        self.devtools("Emulation.setScriptExecutionDisabled", value=off)

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.devtools("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def console(self) -> list[dict[str, Any]]:
        """What the page has said since the last call."""
        return list(self.post("/se/log", type="browser"))

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        taken = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
