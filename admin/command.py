"""The command line: arguments and exit codes (0 done, 1 refused or failed, 2 wrong usage)."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from admin import (
    calls,
    deliveries,
    keys,
    lines,
    policies,
    restore,
    suppression,
    suppression_import,
    suppression_rebuild,
    switch,
    target,
    trunks,
    webhook_secrets,
    webhook_test,
    workspaces,
)
from admin.policy_input import PolicyName, templates
from admin.suppression_file import check_reason, check_scope
from admin.terminal import AdminError, Terminal, UsageError
from admin.workspace_input import (
    E164,
    AgentId,
    CallingCode,
    CallsPerMinute,
    CallsPerSecond,
    ConcurrentCalls,
    Label,
    OwnNumber,
    SipTrunk,
    WorkspaceId,
    argument,
    matching,
    whole_number,
)
from shared import phone_number
from shared.clock import now_ms
from shared.errors import StoreError, StoreUnclearError
from shared.numbers import ALL
from shared.slots import MAXIMUM_SLOTS
from shared.table_keys import CALL_ID
from shared.telemetry import logger
from shared.timestamps import rfc3339_ms

_T = TypeVar("_T")

_EXAMPLES = f"""\
examples:
  {target.COMMAND} --stack ringonce-prod workspace create acme --agent-name outbound --trunk ST_abc \\
      --from +12025550100 --allow +1 --allow +44
  {target.COMMAND} --stack ringonce-prod key create acme --label 'billing service'
  {target.COMMAND} --local workspace list --json
  {target.COMMAND} --stack ringonce-prod policy apply acme default us-telemarketing
  {target.COMMAND} --stack ringonce-prod switch pause
  {target.COMMAND} --stack ringonce-prod call list --workspace acme --status in_progress
  {target.COMMAND} --stack ringonce-prod call show +12025550123
  {target.COMMAND} --stack ringonce-prod call cancel f9e8d7c6b5a4f3e2d1c0b9a8
  {target.COMMAND} --stack ringonce-prod line show acme
  {target.COMMAND} --stack ringonce-prod trunk list
  {target.COMMAND} --stack ringonce-prod suppression import acme do-not-call.csv --reason 'list of 2026-11-28'
  {target.COMMAND} --stack ringonce-prod deliveries redrive --since 3h --dry-run
  {target.COMMAND} --stack ringonce-prod webhook-test https://example.com/hook --workspace acme

A change takes effect within a minute, `switch pause` and a lowered limit at the next dial.
"""


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code. Raises SystemExit (2) for wrong arguments."""
    words = parser()
    given = words.parse_args(arguments)
    terminal = Terminal(sys.stdin, sys.stdout, sys.stderr, as_json=given.json, assume_yes=given.yes)
    where, calls_table = given.table or given.stack or "AWS", None
    try:
        found = target.find(given, os.environ)
        where, calls_table = found.name, found.calls_table
        with _functions_logs(terminal):
            given.run(found, terminal, given)
    except UsageError as exc:
        words.error(str(exc))
    except AdminError as exc:
        return _failed(terminal, str(exc))
    except StoreError as exc:
        if not isinstance(exc.__cause__, ClientError | BotoCoreError):
            return _failed(terminal, str(exc))
        unclear = isinstance(exc, StoreUnclearError) and not _never_sent(exc.__cause__)
        advice = " If this was a change, look whether it was made before you repeat it." if unclear else ""
        return _failed(terminal, target.explain(exc.__cause__, where, calls_table) + advice)
    except (ClientError, BotoCoreError) as exc:
        return _failed(terminal, target.explain(exc, where, calls_table))
    except KeyboardInterrupt:
        terminal.stderr.write("\n")
        return 130
    return 0


@contextlib.contextmanager
def _functions_logs(terminal: Terminal) -> Iterator[None]:
    """What the functions' code logs as an error is written to stderr, and its metrics nowhere: stdout has the
    command's result, and the metrics are the functions' own.
    """
    handlers = [
        (handler, handler.level, handler.stream)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    try:
        for handler, _, _ in handlers:
            handler.setLevel(logging.ERROR)
            handler.setStream(terminal.stderr)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler, level, stream in handlers:
            handler.setLevel(level)
            handler.setStream(stream)


def _failed(terminal: Terminal, text: str) -> int:
    print(f"admin: {' '.join(text.split())}", file=terminal.stderr)
    return 1


def _never_sent(cause: ClientError | BotoCoreError) -> bool:
    """Whether the request was certainly not sent: without credentials it cannot be signed."""
    return isinstance(cause, target.CREDENTIAL_ERRORS)


# ── commands ────────────────────────────────────────────────────────────────────────────────────────


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="admin",
        description="Ringonce's workspaces with their keys, policies and webhooks, its calls, the line of those "
        "that wait, its trunks, and the switch that stops all dialling.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.set_defaults(table=None, stack=None, local=False, profile=None, region=None, json=False, yes=False)
    everywhere = argparse.ArgumentParser(add_help=False)
    for holder in (top, everywhere):
        _options_of_every_command(holder)
    groups = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def group(name: str, text: str) -> Callable[..., argparse.ArgumentParser]:
        verbs = groups.add_parser(name, help=text, description=text, allow_abbrev=False)
        adding = verbs.add_subparsers(title="commands", metavar="COMMAND", required=True)

        def command(verb: str, run: Callable[..., None], text: str, on_workspace: bool = True) -> Any:
            made = adding.add_parser(verb, help=text, description=text, parents=[everywhere], allow_abbrev=False)
            made.set_defaults(run=run)
            _plain_headings(made)
            if on_workspace:
                made.add_argument("workspace", metavar="WORKSPACE", type=workspace_id)
            return made

        return command

    command = group("workspace", "Tenants: allowed numbers, trunk, limits.")
    create = command("create", workspaces.create, "Makes a workspace, a key and a webhook secret.")
    create.add_argument("--agent-name", required=True, type=label, help="name of the LiveKit agent worker")
    create.add_argument(
        "--trunk", required=True, type=sip_trunk, metavar="ST_...", help="LiveKit's outbound trunk"
    )
    create.add_argument(
        "--no-key", action="store_true", help="no API key: the id is enough (behind IAM or in a private network)"
    )
    create.add_argument(
        "--allow-special-numbers",
        action="store_true",
        default=None,
        help="premium-rate, personal, satellite and other special numbers may be called too",
    )
    _limits_and_lists(create)
    update = command("update", workspaces.update, "Changes only what is given.")
    update.add_argument("--agent-name", type=label, help="name of the LiveKit agent worker")
    update.add_argument("--trunk", type=sip_trunk, metavar="ST_...", help="LiveKit's outbound trunk")
    update.add_argument(
        "--allow-special-numbers",
        action=argparse.BooleanOptionalAction,
        help="whether premium-rate, personal, satellite and other special numbers may be called",
    )
    update.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        help="whether a workspace without keys accepts requests that name its id",
    )
    _limits_and_lists(update)
    _repeated(update, "--remove-from", "remove_from_numbers", e164, "+NUMBER", "removes a number")
    _repeated(update, "--disallow", "disallow", calling_code, "+CODE", "removes a calling code")
    _repeated(update, "--remove-agent", "remove_agents", agent_id, "ID", "removes an agent id")
    update.add_argument("--any-agent", action="store_true", help="allow every agent id")
    command("show", workspaces.show, "Shows one workspace.")
    command("list", workspaces.list_all, "Lists all workspaces.", on_workspace=False)
    command("disable", workspaces.disable, "Refuses all requests of a workspace; its waiting calls fail.")
    command("enable", workspaces.enable, "Lets a disabled workspace call again.")

    command = group("key", "API keys: shown once, stored as SHA-256; a workspace may have several.")
    create = command("create", keys.create, "Makes a key and shows it once.")
    create.add_argument("--label", type=label, metavar="TEXT", help="for people: who or what uses it")
    command("list", keys.list_all, "Lists the keys by their ids, the first digits of their hashes.")
    revoke = command("revoke", keys.revoke, "Revokes a key.")
    revoke.add_argument("key", metavar="KEY_ID", type=key_id, help="as `key list` shows it")
    revoke.add_argument(
        "--open", action="store_true", help="with the last key: open the workspace, so that its id is enough"
    )

    command = group("webhook-secret", "Secrets that sign webhooks; two during a rotation.")
    rotate = command("rotate", webhook_secrets.rotate, "Makes a new secret, shows it once, and signs with both.")
    rotate.add_argument("--drop-old", action="store_true", help="sign with the new one only, at once")
    command("drop-old", webhook_secrets.drop_old, "Ends a rotation: only the newest secret signs.")

    command = group("policy", "Rules of a workspace under which its calls may ring; a call's `purpose` names one.")
    command("list", policies.list_all, "Lists the policies of a workspace.")
    show = command("show", policies.show, "Shows one policy as the JSON that `policy apply` reads.")
    apply = command(
        "apply", policies.apply, "Makes or replaces a policy. Shows what changes and asks before it does."
    )
    edit = command("edit", policies.edit, "Opens a policy in $EDITOR, then does as `policy apply`.")
    remove = command("remove", policies.remove, "Removes a policy.")
    for verb in (show, apply, edit, remove):
        verb.add_argument(
            "policy",
            metavar="POLICY",
            type=policy_name,
            help="its name: `default` is the policy of calls without a `purpose`",
        )
    apply.add_argument(
        "file", metavar="FILE", help=f"a JSON file (docs/policies.md), or a template: {', '.join(templates())}"
    )

    command = group("call", "Calls: found, shown, canceled; without an API key.")
    show = command("show", calls.show, "Shows one call with its number, events and webhooks.", on_workspace=False)
    show.add_argument(
        "call",
        metavar="CALL",
        type=call_reference,
        help="the call's id, or its job's id, its room's name or its number (+...): then the newest call",
    )
    _time_and_workspace(show, "1d", "unless named by its id: ")
    listing = command("list", calls.list_all, "Lists calls, the newest first.", on_workspace=False)
    _time_and_workspace(listing, "1d")
    listing.add_argument("--to", type=called_number, metavar="+NUMBER", help="only those to this number")
    listing.add_argument("--status", choices=calls.STATUSES, help="only those that have this status now")
    listing.add_argument("--agent", type=agent_id, metavar="ID", help="only those of this agent id")
    listing.add_argument("--room", type=room_name, metavar="NAME", help="only the one in this room")
    listing.add_argument("--job", type=job_id, metavar="ID", help="only the one with this job id")
    listing.add_argument("--limit", type=between(1, 1000), default=20, metavar="1-1000", help="so many (20)")
    cancel = command(
        "cancel",
        calls.cancel,
        "Ends waiting calls, which then do not ring, and hangs up others. Asks before it cancels more than one.",
        on_workspace=False,
    )
    cancel.add_argument("calls", metavar="CALL_ID", nargs="+", type=call_id)

    command = group("deliveries", "Webhooks that did not arrive.")
    listing = command(
        "list",
        deliveries.list_all,
        "Lists webhooks that did not arrive, or all of one call.",
        on_workspace=False,
    )
    listing.add_argument("--call", type=call_id, metavar="CALL_ID", help="those of this call, arrived or not")
    _time_and_workspace(listing, "1d", "without --call: ")
    listing.add_argument(
        "--state",
        dest="states",
        action="append",
        choices=deliveries.STATES,
        help=f"only these (may be repeated); without --call: {', '.join(deliveries.REDRIVEN)}",
    )
    listing.add_argument("--limit", type=between(1, 10_000), default=100, metavar="1-10000", help="so many (100)")
    redrive = command(
        "redrive", deliveries.redrive, "After an outage: makes failed deliveries due again.", on_workspace=False
    )
    _time_and_workspace(redrive)
    redrive.add_argument("--dry-run", action="store_true", help="show what would be done, change nothing")

    text = "Sends one signed test event to a URL and shows the result."
    test = groups.add_parser("webhook-test", help=text, description=text, parents=[everywhere], allow_abbrev=False)
    test.set_defaults(run=webhook_test.send)
    _plain_headings(test)
    test.add_argument("url", metavar="URL", help="as a call's callback_url")
    test.add_argument(
        "--workspace", required=True, metavar="WORKSPACE", type=workspace_id, help="whose secrets sign"
    )

    command = group("line", "Calls that wait for a slot, a trunk or the end of a pause.")
    show = command(
        "show", lines.show, "Shows how many calls of a workspace wait, for what, and the first of them."
    )
    show.add_argument(
        "--limit", type=between(1, 1000), default=20, metavar="1-1000", help="show so many, the first ones (20)"
    )

    command = group("suppression", "Numbers that a workspace's calls must not ring.")
    text = "Suppresses a number: no call to it is dialled any more."
    add = command("add", suppression.add, text)
    remove = command("remove", suppression.remove, "Lets a number be called again. Asks before it does.")
    show = command("show", suppression.show, "Shows who suppressed a number, why and since when; and its rings.")
    for verb in (add, remove, show):
        verb.add_argument("number", metavar="+NUMBER", type=called_number, help="in E.164")
    remove.add_argument("--scope", type=scope, metavar="SCOPE", help="only that of this scope (every one)")
    listing = command("list", suppression.list_all, "Lists the suppressed numbers, whole: not masked.")
    listing.add_argument("--limit", type=between(1, 10_000), default=100, metavar="1-10000", help="so many (100)")
    listing.add_argument("--all", action="store_true", help="however many there are")
    text = "Suppresses the numbers of a file. Interrupted, the same command goes on where it stopped."
    load = command("import", suppression_import.run, text)
    load.add_argument(
        "file",
        metavar="FILE",
        help="CSV, whose first line names the columns number, scope, reason and expires_at, or with numbers "
        "alone; or JSON lines",
    )
    load.add_argument(
        "--country",
        type=country,
        metavar="CODE",
        help="two letters, as DE: whose national spelling the numbers without a + have",
    )
    for verb, when in ((add, ""), (load, "; where the file says nothing")):
        text = f"`all` or the name of a policy: only calls of this purpose (all){when}"
        verb.add_argument("--scope", type=scope, default=ALL, metavar="SCOPE", help=text)
    for verb, text in ((add, "why"), (load, "why; where the file says nothing"), (remove, "why, for the output")):
        verb.add_argument("--reason", type=reason, default="", metavar="TEXT", help=text)
    add.add_argument(
        "--expires-at", type=timestamp, metavar="TIME", help="until when: 2027-01-01T00:00:00Z (for ever)"
    )
    save = command("export", suppression.export, "Writes the suppressed numbers in a form that `import` reads.")
    save.add_argument("file", nargs="?", metavar="FILE", help="into which file (stdout)")
    save.add_argument("--format", choices=("csv", "jsonl"), default="csv", help="(csv)")
    text = "After a loss: says that the table of numbers is complete again, without which nothing is dialled."
    command("mark", suppression.mark, text, on_workspace=False)
    rebuild = command(
        "rebuild",
        suppression_rebuild.run,
        "After a loss: suppresses again what a backup, agents' reports and the log name. docs/operations.md has "
        "the whole procedure.",
        on_workspace=False,
    )
    rebuild.add_argument("workspaces", nargs="*", metavar="WORKSPACE", type=workspace_id)
    rebuild.add_argument("--all", action="store_true", help="all workspaces")
    rebuild.add_argument(
        "--since",
        type=moment,
        default=0,
        metavar="WHEN",
        help="the second of which the restored table is: reports and log lines from then on: 2h, "
        "2026-11-28T09:59:00Z (all)",
    )
    rebuild.add_argument("--restored", metavar="TABLE", help="into which a backup was restored; it is only read")
    _repeated(rebuild, "--log-file", "log_files", str, "FILE", "log lines `suppression changed`")

    command = group("trunk", "SIP trunks: one that refuses dials several times in a row is stopped, calls wait.")
    command("list", trunks.list_all, "Lists the trunks with their state and faults.", on_workspace=False)
    reset = command(
        "reset", trunks.reset, "Uses a trunk again at once, after its fault is repaired.", on_workspace=False
    )
    reset.add_argument("trunk", metavar="ST_...", type=sip_trunk, help="as `trunk list` shows it")

    command = group("switch", "Stops all dialling of all workspaces; calls wait.")
    command("pause", switch.pause, "Stops all dialling; calls under way go on, others wait.", on_workspace=False)
    command("resume", switch.resume, "Resumes dialling.", on_workspace=False)
    command("status", switch.status, "Shows whether dialling is paused.", on_workspace=False)

    command = group("restore", "After calls were lost: docs/operations.md has the whole procedure.")
    seal = command(
        "seal",
        restore.seal,
        "Restores calls from a backup and ends the open ones without dialling.",
        on_workspace=False,
    )
    seal.add_argument("restored", metavar="TABLE", help="into which the backup was restored; it is only read")
    return top


def _plain_headings(command: argparse.ArgumentParser) -> None:
    """Instead of argparse's `positional arguments` and `options`, which say nothing beside the other headings."""
    command._positionals.title = "what it acts on"
    command._optionals.title = "how it is done"


def _options_of_every_command(holder: argparse.ArgumentParser) -> None:
    """Options allowed before and after the command. Only given ones are set, so that neither resets the other."""

    def option(name: str, **details: Any) -> None:
        where.add_argument(name, default=argparse.SUPPRESS, **details)

    where = holder.add_argument_group("which stack or table")
    option("--stack", metavar="NAME", help="the tables of this CloudFormation stack (or RINGONCE_STACK)")
    option(
        "--table",
        metavar="NAME",
        help="the workspaces' table of this name (or WORKSPACES_TABLE; the calls' is CALLS_TABLE, the "
        "numbers' NUMBERS_TABLE, the URL of the queue of dial messages DIAL_QUEUE_URL)",
    )
    option("--local", action="store_true", help="the tables of the local stack that `make run` started")
    option("--profile", metavar="NAME", help="AWS profile")
    option("--region", metavar="NAME", help="AWS region")
    where = holder.add_argument_group("how it answers and asks")
    option("--json", action="store_true", help="print one JSON value, for scripts")
    option("--yes", action="store_true", help="do it without asking for confirmation")


def _time_and_workspace(command: argparse.ArgumentParser, since: str | None = None, when: str = "") -> None:
    """Of which calls. since: the default; None: it must be given."""
    command.add_argument(
        "--since",
        required=since is None,
        default=since,
        type=moment,
        metavar="WHEN",
        help=f"{when}calls placed from then on: 2h, 30d, 2026-11-25T09:00Z" + (f" ({since})" if since else ""),
    )
    command.add_argument("--until", type=moment, metavar="WHEN", help="calls placed until then (now)")
    command.add_argument("--workspace", metavar="WORKSPACE", type=workspace_id, help="only this one's (all)")


def _limits_and_lists(command: argparse.ArgumentParser) -> None:
    command.add_argument("--name", type=label, help="for people")
    text = "number of the trunk; the first is the default"
    _repeated(command, "--from", "from_numbers", own_number, "+NUMBER", text)
    _repeated(
        command,
        "--allow",
        "allow",
        calling_code,
        "+CODE",
        "beginning of numbers that may be called, +1 (US and Canada), +44, +1876; none: no number",
    )
    _repeated(command, "--agent", "agents", agent_id, "ID", "agent id that may be used; none: any")
    for name, kind, metavar, text in (
        ("--max-concurrent-calls", ConcurrentCalls, f"1-{MAXIMUM_SLOTS}", "calls at a time"),
        ("--calls-per-minute", CallsPerMinute, "1-60000", "calls accepted"),
        ("--calls-per-second", CallsPerSecond, "1-100", "what the trunk takes"),
    ):
        command.add_argument(name, type=argument(kind), metavar=metavar, help=text)


def _repeated(
    command: argparse.ArgumentParser, name: str, dest: str, kind: Callable[[str], str], metavar: str, text: str
) -> None:
    command.add_argument(
        name, dest=dest, action="append", default=[], type=kind, metavar=metavar, help=f"{text} (may be repeated)"
    )


# ── types of arguments ──────────────────────────────────────────────────────────────────────────────


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    return argument(Annotated[str, matching(pattern, what)])


def between(least: int, most: int) -> Callable[[str], int]:
    return argument(Annotated[int, whole_number(least, most)])


workspace_id = argument(WorkspaceId)
agent_id = argument(AgentId)
sip_trunk = argument(SipTrunk)
calling_code = argument(CallingCode)
e164 = argument(E164)
call_id = _matching(CALL_ID.pattern, "a call's id: 24 hex digits")
job_id = _matching(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a job's id, as 059f36b4-...")
room_name = _matching(r"[A-Za-z0-9_-]{1,128}-[a-z0-9]{10}", "a room's name: the agent id, - and 10 of a-z and 0-9")
key_id = _matching(r"[0-9a-f]{8,64}", "a key's id: 8 hex digits, as `key list` shows them")
own_number = argument(OwnNumber)
label = argument(Label)
policy_name = argument(PolicyName)


def call_reference(text: str) -> tuple[str, str]:
    """By what the text names a call (call, job, room, to), and the value. Raises ArgumentTypeError."""
    if text.startswith("+"):
        return "to", called_number(text)
    for by, check in (("call", call_id), ("job", job_id), ("room", room_name)):
        with contextlib.suppress(argparse.ArgumentTypeError):
            return by, check(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a call's id (24 hex digits) nor a job's, a room's name or a phone number (+...)"
    )


def called_number(text: str) -> str:
    """The number as a request's `to` is stored, from what a person writes. Raises ArgumentTypeError."""
    try:
        return phone_number.e164(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} {exc}") from exc


def scope(text: str) -> str:
    return _checked(check_scope, text)


def reason(text: str) -> str:
    return _checked(check_reason, text)


def timestamp(text: str) -> int:
    """Epoch milliseconds."""
    return _checked(rfc3339_ms, text)


def country(text: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS

    if text.upper() not in SUPPORTED_REGIONS:
        raise argparse.ArgumentTypeError(f"{text!r} is no country's code of two letters, as DE")
    return text.upper()


def _checked(check: Callable[[str], _T], text: str) -> _T:
    try:
        return check(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc


def moment(text: str) -> int:
    """Epoch milliseconds of a time such as `2026-11-25T09:00Z`, or of an age: `45m`, `2h`, `1d`."""
    if ago := re.fullmatch(r"(\d{1,4})([mhd])", text, re.ASCII):
        return now_ms() - int(ago[1]) * {"m": 60, "h": 3600, "d": 86400}[ago[2]] * 1000
    try:
        then = datetime.datetime.fromisoformat(text)
    except ValueError:
        then = None
    if then is None or then.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time with its zone (2026-11-25T09:00Z) nor 45m, 2h, 1d"
        )
    return int(then.timestamp() * 1000)
