"""A real headless Chromium, driven through chromedriver's plain HTTP: no package is needed, only the two programs."""

import json
import re
import shutil
import subprocess
import urllib.request

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """`with Browser(folder) as browser`: one page at a time. Skips the test where there is no Chromium."""

    def __init__(self, folder):
        program = next(filter(None, map(shutil.which, CHROMIUM)), None)
        driver = shutil.which("chromedriver")
        if program is None or driver is None:
            pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
        command = [driver, "--port=0"]  # a free one, which it names
        self.driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in self.driver.stdout)))[1]
        self.at = f"http://127.0.0.1:{port}/session"
        options = {"binary": program, "args": [*FLAGS, f"--user-data-dir={folder}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self.at += "/" + self.call("POST", "", capabilities={"alwaysMatch": wanted})["sessionId"]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.driver.stdout.close()

    def call(self, method, path, **body):
        """One WebDriver command."""
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.at + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["value"]

    def devtools(self, command, **params):
        """One command of Chromium's own protocol."""
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=params)

    def run(self, script, *args):
        """What a script in the page returns; a promise is waited for."""
        return self.call("POST", "/execute/sync", script=script, args=args)

    def window(self, width, height=900, theme="light"):
        """The size of the window, and the colours that its user prefers."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def open(self, path):
        """Load a file and wait until it says that it is ready."""
        self.call("POST", "/url", url=path.resolve().as_uri())
        look = "const look = () => document.body.dataset.ready ? done() : setTimeout(look, 20);"
        self.run(f"return new Promise((done) => {{ {look} look(); }})")

    def log(self):
        """What the page has written to the console, errors among it."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.call("POST", "/se/log", type="browser")]

    def press(self, key):
        """One key, down and up, wherever the focus is."""
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keys", "actions": keys}])

    def point(self, x, y):
        """Move the mouse to a place in the window."""
        move = [{"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}]
        self.call("POST", "/actions", actions=[{"type": "pointer", "id": "mouse", "actions": move}])
