"""The suite's own promise: a test has no network beyond this machine."""

from __future__ import annotations

import socket

import pytest


def test_only_loopback_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError, match="no network"):
        sock.connect(("192.0.2.1", 80))
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError, match="no network"):
        sock.connect_ex(("192.0.2.1", 80))
    with pytest.raises(socket.gaierror):
        socket.create_connection(("example.org", 80), 1)
