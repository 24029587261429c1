"""Chromium without a window, driven over a pipe by its DevTools protocol. Nothing but the browser is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def found():
    """Return the path of a Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a Chromium of its own. `go` opens an address, `run` evaluates JavaScript in it."""

    def __init__(self, limit=60.0):
        self.limit = limit
        self.profile = tempfile.TemporaryDirectory(prefix="peft-harness-chromium-", ignore_cleanup_errors=True)
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()
        words = [
            found(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "--no-sandbox",
            "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
            "--allow-file-access-from-files", "about:blank",
        ]  # fmt: skip

        # Chromium reads commands from descriptor 3 and writes answers to 4. The pipes' own may have these numbers.
        def wire():
            reader, writer = os.dup(read_end), os.dup(write_end)
            while min(reader, writer) < 5:
                reader, writer = os.dup(reader), os.dup(writer)
            os.dup2(reader, 3)
            os.dup2(writer, 4)

        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(
            words, stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=wire, close_fds=False, start_new_session=True
        )
        os.close(read_end)
        os.close(write_end)
        self._number, self._buffer, self.events = 0, b"", []
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._in)
        os.close(self._out)
        self.profile.cleanup()

    def ask(self, method, **params):
        """Send a command and return its result. Raises RuntimeError for an error, TimeoutError if there is no answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        end = time.monotonic() + self.limit
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {self.limit} s")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def go(self, address):
        """Open an address and wait until it has loaded."""
        self.events.clear()
        self.ask("Page.navigate", url="about:blank")
        self.ask("Page.navigate", url=str(address))
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """Return what a JavaScript expression is; a promise is awaited."""
        done = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"].get("exception", {}).get("description", str(done)))
        return done["result"].get("value")

    def wait(self, condition):
        """Wait until a JavaScript condition holds. Raises TimeoutError if it does not."""
        end = time.monotonic() + self.limit
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def press(self, key, text=None):
        """Press a key, such as "Tab" or "Enter"."""
        code = {"Tab": 9, "Enter": 13, " ": 32}.get(key, 0)
        more = {"text": text} if text else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, **more)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def complaints(self):
        """Return what the page's console and policy complained of, and what it asked of the network."""
        said = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                said.append(json.dumps(params["exceptionDetails"])[:500])
            elif method == "Log.entryAdded":
                said.append(params["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                said += [f"asked for {url}"] if url.startswith(("http", "ws", "ftp")) else []
        return said

    def look(self, width=1200, height=900, dark=False, whole=False):
        """Return a PNG of the page."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def printed(self):
        """Return the page as PDF."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=False)["data"])


needs_chromium = pytest.mark.skipif(found() is None, reason="needs a Chromium on PATH")


@pytest.fixture(scope="module")
def chromium():
    with Browser() as one:
        yield one
