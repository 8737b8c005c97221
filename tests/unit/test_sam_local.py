"""The variables for `sam local`, and the forwarding of its containers' connections."""

from __future__ import annotations

import socket
import threading

import pytest
import pytest_socket

from local.sam_local import bridge_address, environments, forward_port


def test_a_container_gets_the_hosts_address_and_no_variable_of_the_stacks_processes() -> None:
    deployed = {"F": {"QUEUE": "http://127.0.0.1:4566/000/q", "PYTHONPATH": "/x", "TIME_SCALE": "0.05"}}
    given = environments(deployed, "http://127.0.0.1:4566", {"AWS_ACCESS_KEY_ID": "test"}, "host.docker.internal")
    assert given == {
        "F": {
            "QUEUE": "http://host.docker.internal:4566/000/q",
            "TIME_SCALE": "0.05",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_ENDPOINT_URL": "http://host.docker.internal:4566",
        }
    }


@pytest.fixture
def sockets() -> None:
    """This test's subject is a socket, on loopback."""
    pytest_socket.enable_socket()


@pytest.mark.usefixtures("sockets")
def test_connections_are_forwarded_in_both_directions_until_the_end() -> None:
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        door = forward_port("127.0.0.2", port, done)
        with socket.create_connection(("127.0.0.2", port)) as client:
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            inside, _ = server.accept()
            with inside:
                assert inside.recv(100) == b"request"
                inside.sendall(b"answer")
            assert client.recv(100) == b"answer"
    done.set()
    door.join(60)
    assert not door.is_alive()


@pytest.mark.usefixtures("sockets")
def test_an_absent_interface_has_no_address() -> None:
    assert bridge_address("nosuch0") is None
    assert bridge_address("lo") == "127.0.0.1"
