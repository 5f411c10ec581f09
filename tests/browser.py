"""A real Chromium without a window, driven over WebDriver: what a page shows to a person is what a browser made of it."""

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.waiting import PATIENCE
from venice.engine import ensure_tools

OPTIONS = [
    "--headless=new",
    "--disable-gpu",
    # containers have a small /dev/shm
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--no-proxy-server",
]


class Browser:
    """One window."""

    def __init__(self, driver: str, session: str):
        self.base = f"{driver}/session/{session}"
        self.client = httpx.Client(timeout=PATIENCE, trust_env=False)

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The visible text of the first element that matches; empty when none does."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def table(self) -> dict[str, list[str]]:
        """The rows of the page's table: first cell -> all cells."""
        rows = self.run("return [...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))")
        return {row[0]: row for row in rows}

    def _post(self, path: str, body: dict) -> Any:
        answer = self.client.post(self.base + path, json=body)
        assert answer.is_success, answer.text
        return answer.json()["value"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser; Debian's packages are installed when they are missing (as root on Debian), else it says which."""
    ensure_tools({"chromium": "chromium", "chromedriver": "chromium-driver"}, print)
    with tempfile.TemporaryDirectory(prefix="venice-chromium-") as profile:
        driver, port = _driver()
        try:
            threading.Thread(target=driver.stdout.read, daemon=True).start()  # so that it never waits for a reader
            base = f"http://127.0.0.1:{port}"
            # Chromium's sandbox refuses to work for root
            options = [*OPTIONS, f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": {"args": options}}}}
            answer = httpx.post(f"{base}/session", json=wanted, timeout=PATIENCE, trust_env=False).json()["value"]
            assert "sessionId" in answer, answer
            try:
                yield Browser(base, answer["sessionId"])
            finally:
                httpx.delete(f"{base}/session/{answer['sessionId']}", timeout=PATIENCE, trust_env=False)
        finally:
            driver.terminate()
            driver.wait(PATIENCE)


def _driver() -> tuple[subprocess.Popen, str]:
    """chromedriver, and the port that it chose.

    It takes one that is free with IPv6 and ends when something else has that one with IPv4, so it may have to choose again.
    """
    for _ in range(20):
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = []
        for line in driver.stdout:
            said.append(line)
            if found := re.search(r"started successfully on port (\d+)", line):
                return driver, found[1]
        driver.wait(PATIENCE)
    raise AssertionError("chromedriver does not start:\n" + "".join(said))
