"""`python -m local.livekit`: the stand-in as a process. Prints one line `READY {"url": ...}`."""

from __future__ import annotations

import argparse

from local.http_server import serve
from local.livekit import Faults, Settings, create_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.livekit", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port (default)")
    parser.add_argument("--api-key", required=True)
    parser.add_argument("--api-secret", required=True)
    parser.add_argument("--webhook-url", action="append", default=[], help="may be given several times")
    parser.add_argument("--time-scale", type=float, default=1.0, help="multiplies LiveKit's own limits")
    parser.add_argument(
        "--slack", type=float, default=0.0, help="seconds given besides to whoever must do something"
    )
    defaults = Faults()
    parser.add_argument("--agent-join-seconds", type=float, default=defaults.agent_join_seconds)
    parser.add_argument("--ring-seconds", type=float, default=defaults.ring_seconds)
    parser.add_argument("--talk-seconds", type=float, default=defaults.talk_seconds)
    given = parser.parse_args()
    settings = Settings(
        api_key=given.api_key,
        api_secret=given.api_secret,
        webhook_urls=tuple(given.webhook_url),
        time_scale=given.time_scale,
        slack=given.slack,
        faults=Faults(
            agent_join_seconds=given.agent_join_seconds,
            ring_seconds=given.ring_seconds,
            talk_seconds=given.talk_seconds,
        ),
    )
    serve(create_app(settings), given.port)


if __name__ == "__main__":
    main()
