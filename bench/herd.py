"""A herd: many processes that want the same image at once, none of which has it. Interpreters are started before."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def server(root: Path, log: Path) -> Iterator[str]:
    """Serve the files in `root` from a process of its own; each request's path is a line of `log`. Yields the URL."""

    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with log.open("a") as file:
                file.write(self.path + "\n")
            path = root / Path(self.path).name
            if not path.is_file():
                self.send_error(404)
                return
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.flush()
                offset = 0
                while offset < size:
                    offset += os.sendfile(self.connection.fileno(), file.fileno(), offset, size - offset)

        def log_message(self, *_: object) -> None:
            pass

    log.touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as listening:
        listening.request_queue_size = 128
        pid = os.fork()
        if pid == 0:
            listening.socket.listen(128)
            listening.serve_forever()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def together_s(count: int, work: Callable[[int], object]) -> float:
    """Fork `count` processes, let them all begin at once, and return the seconds until the last has what it wanted.

    Their start and their end are not counted.
    """
    gate, opener = os.pipe()
    done, tell = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                gc.disable()  # as lrms_vm/__main__.py does
                os.close(opener)
                os.read(gate, 1)  # ends when the parent closes its end
                work(number)
                status = 0
            finally:
                os.write(tell, b".")
                os._exit(status)
        pids.append(pid)
    os.close(gate)
    os.close(tell)
    start = time.perf_counter()
    os.close(opener)
    told = 0
    while told < count and (some := os.read(done, count)):
        told += len(some)
    took_s = time.perf_counter() - start
    os.close(done)
    ended = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(ended):
        raise RuntimeError(f"{sum(1 for code in ended if code)} of {count} processes failed")
    return took_s
