"""A search in a real browser: optuna-dashboard's pages and TensorBoard's, and pictures of them.

``python -m tests.processes.search_pages FOLDER`` needs Chromium. It fails unless the pages show the
trials' values. FOLDER gets the pictures.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tests.running import Process, free_port, wait_until
from tests.searches import FAILURE, search
from tfdp.search.curves import Curves
from tfdp.search.storage import open_storage

LIMIT_S = 90
SCRIPTS = Path(sys.executable).parent
PICTURE_WIDTH = 1000

# All text of a page, with that in shadow roots, of which TensorBoard is made.
TEXT = """
(function text(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.data + ' ';
  if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName)) return '';
  const below = [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes];
  return below.map(text).join('');
})(document.body)
"""


@contextlib.contextmanager
def serving(command: list[str], limit_s: float = LIMIT_S) -> Iterator[str]:
    """Runs a server of web pages, and gives its address when it answers."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    program = [str(SCRIPTS / command[0]), *command[1:], f"--port={port}"]
    with Process(program, limit_s=limit_s) as process:

        def answers() -> bool:
            assert process.popen.poll() is None, process.tail()
            try:
                urllib.request.urlopen(address, timeout=10).close()
            except urllib.error.HTTPError:
                return True
            except OSError:
                return False
            return True

        wait_until(answers, limit_s, f"{command[0]} answers")
        yield address


def dashboard(journal: Path) -> contextlib.AbstractContextManager[str]:
    return serving(["optuna-dashboard", str(journal), "--quiet"])


def tensorboard(logdir: Path, *flags: str) -> contextlib.AbstractContextManager[str]:
    return serving(["tensorboard", f"--logdir={logdir}", "--reload_interval=1", *flags])


class Browser:
    """A page in a headless Chromium, which is asked through a pipe; use it in a ``with`` block."""

    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self._profile = tempfile.TemporaryDirectory()
        to_browser, self._requests = _pipe()
        self._answers, from_browser = _pipe()
        program = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
        # Chromium reads requests from descriptor 3 and writes answers to 4.
        pipes = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ]
        flags += [f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"]
        self._process = subprocess.Popen(
            ["timeout", str(LIMIT_S), "bash", "-c", pipes, "bash", program, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        page = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # ``timeout`` passes it on
        self._process.wait()
        os.close(self._requests)
        os.close(self._answers)
        self._profile.cleanup()

    def open(self, url: str, *expected: str) -> None:
        """Goes to a page and waits until its text has everything that is expected."""
        self._ask("Page.navigate", url="about:blank")  # or only the part behind # is new
        self._ask("Page.navigate", url=url)
        text = ""

        def missing() -> list[str]:
            nonlocal text
            answer = self._ask("Runtime.evaluate", expression=TEXT)
            text = " ".join(str(answer["result"].get("value", "")).split())
            return [each for each in expected if each not in text]

        deadline = time.monotonic() + 30
        while lacking := missing():
            if time.monotonic() > deadline:
                raise AssertionError(f"{url} lacks {lacking}; it has: {text}")
            time.sleep(0.1)

    def picture(self, height: int) -> bytes:
        """The page's upper part as a PNG file."""
        time.sleep(1)  # drawing has no end that one could wait for
        clip = {"x": 0, "y": 0, "width": self._width, "height": height, "scale": 1}
        answer = self._ask("Page.captureScreenshot", format="png", clip=clip)
        return base64.b64decode(answer["data"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                more = os.read(self._answers, 1 << 20)
                assert more, "Chromium has ended"
                self._buffer += more
            message, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(message)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are not among the descriptors that Chromium uses."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reading, writing


def shrink(picture: bytes, path: Path) -> None:
    """Writes a picture for a page of documentation."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    height = round(image.height * PICTURE_WIDTH / image.width)
    image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS).save(path, optimize=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        workdir = Path(name)
        study, table = search(open_storage(workdir / "study.log"))
        Curves(workdir).update(table)
        best, failed = study.best_trial, next(row for row in table if row.state == "failed")
        pruned = next(row for row in table if row.state == "pruned")
        with dashboard(workdir / "study.log") as address, Browser(1440, 1150) as browser:
            params = [f"{name}: {value}" for name, value in best.params.items()]
            pages = f"{address}/dashboard/studies/0"
            browser.open(pages, f"Best Trial (number={best.number}) {best.value}", *params)
            shrink(browser.picture(1150), folder / "search_dashboard.png")
            for row in (table[best.number], pruned):
                values = [f"{step} {value}" for step, value in row.rungs.items()]
                browser.open(f"{pages}/trials?numbers={row.number}", f"Trial {row.number}", *values)
            shrink(browser.picture(900), folder / "search_dashboard_trial.png")
            browser.open(f"{pages}/trials?numbers={failed.number}", FAILURE)
        with (
            tensorboard(workdir / "trials") as address,
            Browser(1500, 2000) as browser,  # the table of trials has the rows that fit
        ):
            lines = []  # numbers as the table has them, with five digits
            for row in table:
                shown = [
                    Path(row.folder).name,
                    *(row.params[p] for p in ("dropout", "learning_rate")),
                ]
                shown += [row.params.get("momentum", ""), row.params["optimizer"]]
                shown += [float(row.params["units"])]
                shown += [] if row.objective is None else [row.objective]
                texts = [f"{v:#.5g}" if isinstance(v, float) else str(v) for v in shown]
                lines.append(" ".join(filter(None, texts)))
            browser.open(f"{address}/#hparams", *lines)
            shrink(browser.picture(720), folder / "search_tensorboard.png")
            browser.open(f"{address}/#timeseries", f"{best.number:04d}/search", "accuracy")
            shrink(browser.picture(720), folder / "search_tensorboard_curves.png")
    print(f"the pages show all trials; pictures are in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/pages"))
