"""`python -m local.livekit`: the stand-in as a process. Prints one line `READY {"url": ...}`."""

from __future__ import annotations

from local.command_line import CommandLine, http_url, port, positive, seconds
from local.http_server import serve
from local.livekit import Faults, Settings, create_app


def main() -> None:
    command = CommandLine(prog="python -m local.livekit", description=__doc__)
    command.add_argument("--port", type=port, default=0, help="0: any free port (default)")
    command.add_argument("--api-key", required=True)
    command.add_argument("--api-secret", required=True)
    command.add_argument(
        "--webhook-url", type=http_url, action="append", default=[], help="may be given several times"
    )
    command.add_argument("--time-scale", type=positive, default=1.0, help="multiplies LiveKit's own limits")
    command.add_argument("--slack", type=seconds, default=0.0, help="seconds that each wait lasts longer")
    defaults = Faults()
    command.add_argument("--agent-join-seconds", type=seconds, default=defaults.agent_join_seconds)
    command.add_argument("--ring-seconds", type=seconds, default=defaults.ring_seconds)
    command.add_argument("--talk-seconds", type=seconds, default=defaults.talk_seconds)
    given = command.parse_args()
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
    serve(command, create_app(settings), given.port)


if __name__ == "__main__":
    main()
