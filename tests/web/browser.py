"""LiteRT.js in Debian's Chromium: on WebAssembly, and on WebGPU with SwiftShader."""

import dataclasses
import fcntl
import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

import numpy as np

from third_party.python import make_environment

_VERSION = "2.5.3"
_PAGE = pathlib.Path(__file__).with_name("run_models.html")
_TIMEOUT = 240  # seconds, for all models
_CHROMIUM = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--enable-unsafe-webgpu",
    "--use-webgpu-adapter=swiftshader",
    "--enable-features=Vulkan",
    "--no-first-run",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of one input and one output to run.

    Attributes:
      content: The .tflite.
      accelerator: "wasm" or "webgpu".
      x: The float32 input.
    """

    content: bytes
    accelerator: str
    x: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a case.

    Attributes:
      output: The output in the shape of the input, unless there was an error.
      error: The message of JavaScript's exception.
    """

    output: np.ndarray | None
    error: str | None


def install() -> pathlib.Path:
    """Returns a folder with node_modules/@litertjs, installed by npm if need be.

    Raises:
      RuntimeError: npm or Chromium is missing, or npm failed.
    """
    for program in ("chromium", "npm"):
        if not shutil.which(program):
            raise RuntimeError(f"{program} is not installed")
    folder = make_environment.cache_folder() / f"litertjs-{_VERSION}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            result = subprocess.run(
                ["npm", "install", "--prefix", folder, f"@litertjs/core@{_VERSION}"],
                capture_output=True,
                text=True,
            )
            if result.returncode:
                raise RuntimeError(f"npm failed: {result.stderr.strip()}")
            (folder / "complete").touch()
    return folder


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the page, the packages and the cases; takes the results."""

    def __init__(self, *args, cases, results, done, **kwargs):
        self._cases, self._results, self._done = cases, results, done
        super().__init__(*args, **kwargs)

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/":
            self._reply("text/html", _PAGE.read_bytes())
        elif path == "/cases.json":
            listed = [
                {
                    "model": f"/model/{i}",
                    "accelerator": case.accelerator,
                    "shape": case.x.shape,
                    "input": case.x.ravel().tolist(),
                }
                for i, case in enumerate(self._cases)
            ]
            self._reply("application/json", json.dumps(listed).encode())
        elif path.startswith("/model/"):
            content = self._cases[int(path.rpartition("/")[2])].content
            self._reply("application/octet-stream", content)
        else:
            super().do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        result = json.loads(body)
        self._results[result["index"]] = result
        self._reply("text/plain", b"")
        if len(self._results) == len(self._cases):
            self._done.set()

    def _reply(self, kind: str, content: bytes):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def run(folder: pathlib.Path, cases: list[Case]) -> list[Result]:
    """Runs the cases one after the other, each in a page of its own.

    Args:
      folder: The result of `install`.
      cases: The cases.

    Raises:
      TimeoutError: Not all came to an end.
    """
    results, done = {}, threading.Event()
    handler = functools.partial(
        _Handler, cases=cases, results=results, done=done, directory=folder
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        browser = subprocess.Popen(
            [
                "chromium",
                *_CHROMIUM,
                f"--user-data-dir={home}",
                f"http://127.0.0.1:{server.server_address[1]}/",
            ],
            env={**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if not done.wait(_TIMEOUT):
                raise TimeoutError(
                    f"{len(results)} of {len(cases)} models ended in {_TIMEOUT} s"
                )
        finally:
            browser.terminate()
            browser.wait()
            server.shutdown()
            server.server_close()
    return [_result(results[i], case) for i, case in enumerate(cases)]


def _result(posted: dict, case: Case) -> Result:
    output = posted["output"]
    if output is not None:
        # NaN is null in JSON.
        values = [np.nan if v is None else v for v in output]
        output = np.array(values, np.float32).reshape(case.x.shape)
    return Result(output, posted["error"])
