"""A proxy on loopback in front of a server that cannot be told to fail: the Hub's faults for any other."""

import http.client
from typing import Any
from urllib.parse import urlsplit

from services.hub_server import Hub

HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")


class FaultyProxy(Hub):
    """Passes requests on to `backend`; `faults`, `requests`, `up` and `down` are those of the Hub."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = urlsplit(backend).netloc
        self.routes = [(r"/.*", forward)]


def forward(it: Any) -> None:
    connection = http.client.HTTPConnection(it.hub.backend, timeout=20)
    headers = {name: value for name, value in it.headers.items() if name.lower() not in HOP}
    try:
        connection.request(it.command, it.path, it.body, headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
    if it.command == "HEAD" and (length := answer.getheader("Content-Length")):
        kept["Content-Length"] = length
    it.send(answer.status, body, kept)
