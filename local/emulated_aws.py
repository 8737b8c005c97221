"""The emulated AWS: its process, and whether it answers."""

from __future__ import annotations

import urllib.request

from local.aws_client import REGION
from local.paths import AWS_PYTHON
from local.processes import Child, Running, child_environment
from local.state_folder import temporary_folder


def start_emulator(running: Running, port: int) -> Child:
    return running.start(
        "aws",
        [str(AWS_PYTHON), "-m", "emulator"],
        {
            **child_environment(running.state),
            "GATEWAY_PORT": str(port),
            "MINISTACK_HOST": "127.0.0.1",
            "BIND_HOST": "127.0.0.1",
            # Otherwise it listens on every address.
            "IOT_MTLS_ENABLED": "0",
            "MINISTACK_REGION": REGION,
            # The functions' execution roles are enforced: what the template does not allow fails here too.
            "AUTH": "true",
            # A socket that does not exist: the emulator looks for its containers at start and end.
            "DOCKER_HOST": f"unix://{running.state}/no-docker.sock",
            "RINGONCE_TEMPORARY_FOLDER": str(temporary_folder(running.state)),
        },
    )


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
