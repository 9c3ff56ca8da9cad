"""A sweep's folder to make leaderboards of, and a headless Chromium, driven through WebDriver by plain HTTP."""

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

import pytest

from mad.config import Run
from mad.records import Record, Store

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """One session. Downloads go to `folder`; everything goes through a proxy that is not there."""

    def __init__(self, folder: Path):
        assert CHROMIUM and DRIVER
        self.downloads = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url = f"http://127.0.0.1:{port}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += [
            f"--user-data-dir={folder / 'profile'}",
            "--proxy-server=127.0.0.1:9",
            "--force-prefers-no-reduced-motion",
        ]
        options = {
            "binary": CHROMIUM,
            "args": arguments,
            "prefs": {"download.default_directory": str(folder), "download.prompt_for_download": False},
        }
        asked = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        try:
            self._wait()
            started = self._http("POST", "/session", {"capabilities": {"alwaysMatch": asked}})
        except BaseException:
            self.close()
            raise
        self.url += f"/session/{started['sessionId']}"

    def open(self, file: Path) -> None:
        """Open a page, and forget what was logged before."""
        self._http("POST", "/url", {"url": "about:blank"})
        self.console(), self.requests()
        self._http("POST", "/url", {"url": file.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The body of a function; what it returns."""
        return self._http("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def keys(self, *keys: str) -> None:
        """Press and release each, wherever the focus is."""
        pressed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._http("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": pressed}]})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self._http("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def prefer(self, scheme: str) -> None:
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._http("GET", "/screenshot")))

    def console(self) -> list[str]:
        """Messages since the last call."""
        return [entry["message"] for entry in self._http("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call."""
        entries = self._http("POST", "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        if "/session/" in self.url:
            self._http("DELETE", "")
        self.process.terminate()
        self.process.wait(10)

    def _wait(self) -> None:
        for _ in range(100):
            try:
                if self._http("GET", "/status")["ready"]:
                    return
            except urllib.error.URLError:
                pass
            time.sleep(0.1)
        raise RuntimeError("chromedriver does not answer")

    def _http(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(error.read().decode()) from None


def record(
    arch: str = "hyena",
    task: str = "mqar",
    accuracy: float = 0.5,
    *,
    status: str = "ok",
    stack: Any = None,
    lr: float = 1e-3,
    wd: float = 0.0,
    seed: int = 0,
    cost: dict[str, int] | None = None,
    train: dict[str, Any] | None = None,
    **options: Any,
) -> Record:
    """As a run would leave it behind, with a curve of ten points that ends at the accuracy."""
    run = Run.of(
        {
            "task": {"name": task, **options},
            "arch": {"name": arch, "stack": stack or [arch, "swiglu"], "dim": 64, "max_length": 32},
            "optim": {"lr": lr, "weight_decay": wd},
            "train": {"num_train": 640, "num_test": 64, "precision": "fp32", **(train or {})},
            "seed": seed,
        }
    )
    curve = [{"step": 10 * i, "accuracy": accuracy * i / 10, "loss": 1.0} for i in range(1, 11)]
    metrics = {"accuracy": accuracy, "valid_accuracy": accuracy} if status == "ok" else {}
    return Record(run.id, status, run.to_dict(), metrics, curve, cost or {"params": 1000, "flops": 10, "state_size": 5})


@pytest.fixture(name="record", scope="session")
def record_fixture():
    return record


@pytest.fixture
def sweep(tmp_path):
    """Records -> a results folder."""

    def write(*records: Record, name: str = "one") -> Path:
        store = Store(tmp_path / name)
        for one in records:
            store.write(one)
        return store.folder

    return write


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for all tests; `downloads` is its folder."""
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium with chromedriver here (Debian: chromium, chromium-driver)")
    found = Browser(tmp_path_factory.mktemp("browser"))
    try:
        yield found
    finally:
        found.close()
