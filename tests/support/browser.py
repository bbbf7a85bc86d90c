"""A headless Chromium, driven over its DevTools protocol through two pipes: no driver, and no port."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-quic",
    "--remote-debugging-pipe",
)  # fmt: skip
# The browser reads from descriptor 3 and writes to 4.
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
AXE = "axe_core_python"  # the package that brings axe.min.js
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
SECONDS = 60.0  # a busy machine starts a browser slowly


def chromium() -> str:
    """The program; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)}")
    return found


def axe_source() -> str:
    """The text of axe-core; the test is skipped where the package that brings it is not installed."""
    found = importlib.util.find_spec(AXE)
    if found is None or found.origin is None:
        pytest.skip(f"{AXE} is not installed: pip install 'featcache[dev]'")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


class Browser:
    """A browser with a profile of its own.

    Args:
        folder: an empty one, for the profile.
    """

    def __init__(self, folder: Path) -> None:
        to_browser, own_end = os.pipe()
        self._answers, from_browser = os.pipe()
        self._commands = own_end
        root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", LAUNCH, str(to_browser), str(from_browser), chromium(), *FLAGS, *root,
             f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._left, self.events = 0, b"", list[dict[str, Any]]()

    def call(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """The result of one command of the protocol; what happens meanwhile is added to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {"sessionId": session} if session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            if not select.select([self._answers], [], [], SECONDS)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(30)
        os.close(self._commands)
        os.close(self._answers)


class Page:
    """A page in a window of its own; a new one has nothing that another one kept for its tab.

    Args:
        languages: what it prefers, as in `Accept-Language`.
    """

    def __init__(
        self, browser: Browser, url: str, *, width: int = 1280, dark: bool = False, languages: str = "en"
    ) -> None:
        self.browser = browser
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self._target = target
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        agent = self.run("navigator.userAgent")
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=languages)
        self.resize(width)
        self.paint(dark=dark)
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **values)

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def paint(self, *, dark: bool) -> None:
        """In dark colours, or in light ones."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression, once it is settled."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", script))
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.run(f"Boolean({script})"):
                    return
            except RuntimeError:
                pass  # the page is being replaced
            time.sleep(0.05)
        raise TimeoutError(f"never true: {script}\n{self.text()[:2000]}")

    def text(self) -> str:
        """What a person can read."""
        return str(self.run("document.body.innerText"))

    def type(self, selector: str, text: str) -> None:
        """Put a text into a field, as the keyboard does."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.run("document.activeElement.select()")
        self.call("Input.insertText", text=text)

    def key(self, name: str) -> None:
        """Press a key; Enter alone has a text of its own."""
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, **text)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in a field for files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors of its scripts, and what its policy stopped."""
        found = []
        for event in (one for one in self.browser.events if one.get("sessionId") == self.session):
            if event["method"] == "Runtime.exceptionThrown":
                found.append(
                    event["params"]["exceptionDetails"]["exception"].get("description", "an exception")
                )
            entry = event["params"].get("entry", {})
            if event["method"] == "Log.entryAdded" and entry["level"] == "error":
                found.append(f"{entry['source']}: {entry['text']}")
        return found

    def violations(self) -> list[str]:
        """What axe finds: rule, element and reason."""
        self.run(axe_source() + "; true")
        options = json.dumps({"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]})
        found = self.run(f"axe.run(document, {options})")
        return [
            f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for one in found["violations"]
            for node in one["nodes"]
        ]

    def overflow(self) -> list[str]:
        """Elements that are wider than the window, except in regions that scroll."""
        script = """[...document.body.querySelectorAll("*")].filter((one) =>
            one.getBoundingClientRect().right > document.documentElement.clientWidth + 1
            && !one.closest(".scroll, svg, .behind") && one.getClientRects().length
        ).map((one) => one.outerHTML.slice(0, 150))"""
        found: list[str] = self.run(script)
        return found

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self._target)
