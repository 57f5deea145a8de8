"""A real S3 server on loopback, and a proxy before it that fails when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

BUCKET = "images"


@dataclass
class Proxy:
    """Passes requests on; `fails` says of each which failure it meets, if any: ``500``, ``cut`` or ``stall``."""

    port: int = 0
    fails: Callable[[int, str, str], str | None] = lambda number, method, path: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """What says where it is."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    """Run both until the end of the block; there is a bucket, `BUCKET`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    urlopen(Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")).close()
    proxy = Proxy()
    handler = _handler(proxy, port)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    listener.daemon_threads = True
    proxy.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()
        server.stop()


def _handler(proxy: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass_on(self) -> None:
            proxy.requests.append((self.command, self.path))
            failure = proxy.fails(len(proxy.requests), self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if failure == "500":
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if failure == "stall":
                time.sleep(1)
                self.close_connection = True
                return
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body or None, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if failure == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
                return
            proxy.bytes_sent += len(data)
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    return Handler
