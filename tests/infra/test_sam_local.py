"""The template for `sam local`, read by SAM's own classes: every route, for this machine's processor."""

from __future__ import annotations

import json
import platform
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from samtranslator.yaml_helper import yaml_parse

from local.sam_local import artifact_folder, template

ROOT = Path(__file__).parents[2]
SOURCE = yaml_parse((ROOT / "template.yaml").read_text())
FUNCTIONS = [name for name, entry in SOURCE["Resources"].items() if entry["Type"] == "AWS::Serverless::Function"]

AS_SAM_READS_IT = """
import json, sys
from samcli.lib.providers.api_provider import ApiProvider
from samcli.lib.providers.sam_function_provider import SamFunctionProvider
from samcli.lib.providers.sam_stack_provider import SamLocalStackProvider
stacks, _ = SamLocalStackProvider.get_stacks(sys.argv[1])
found = ApiProvider(stacks).api.routes
routes = {f"{method} {route.path}": route.function_name for route in found for method in route.methods}
functions = {f.name: [f.architectures, f.codeuri, f.environment] for f in SamFunctionProvider(stacks).get_all()}
print(json.dumps([routes, functions]))
"""


@pytest.fixture(scope="module", params=["x86_64", "aarch64", "arm64"])
def read(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """A machine's name for its processor; the routes and the functions that SAM finds there."""
    path = tmp_path_factory.mktemp("sam") / "sam-template.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "machine", lambda: request.param)
        made = template(SOURCE, {name: {"A": name} for name in FUNCTIONS}, str(ROOT / artifact_folder()))
    path.write_text(yaml.safe_dump(json.loads(json.dumps(made)), sort_keys=False))
    sam = [str(ROOT / ".venv-sam" / "bin" / "python"), "-c", AS_SAM_READS_IT, str(path)]
    done = subprocess.run(sam, capture_output=True, text=True, env={"AWS_DEFAULT_REGION": "us-east-1"})
    assert done.returncode == 0, done.stderr
    return request.param, *json.loads(done.stdout.splitlines()[-1])


def test_the_api_has_every_route_of_the_template(read: tuple[str, Any, Any]) -> None:
    _, routes, _ = read
    wanted = {
        f"{event['Properties']['Method']} {event['Properties']['Path']}": name
        for name in FUNCTIONS
        for event in SOURCE["Resources"][name]["Properties"].get("Events", {}).values()
        if event["Type"] == "HttpApi"
    }
    assert len(wanted) > 5
    assert routes == wanted


def test_the_functions_are_those_that_were_built_for_this_machine(read: tuple[str, Any, Any]) -> None:
    machine, _, functions = read
    processor = "x86_64" if machine == "x86_64" else "arm64"
    assert functions.keys() == set(FUNCTIONS)
    for name, (architectures, code, environment) in functions.items():
        assert architectures == [processor], name
        assert ("build-x86_64" in code) == (processor == "x86_64"), name
        assert environment == {"Variables": {"A": name}}


def test_both_commands_of_sam_local_accept_the_local_stacks_template() -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text())["default"]
    wanted = {"template_file": ".local/sam-template.yaml", "env_vars": ".local/sam-env.json"}
    assert config["local_invoke"]["parameters"] == config["local_start_api"]["parameters"] == wanted


def test_one_command_builds_for_this_machine_and_serves() -> None:
    told = subprocess.run(["make", "-n", "sam-local"], cwd=ROOT, capture_output=True, text=True).stdout
    processor = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
    assert f"build ARCH={processor}" in told
    assert "sam local start-api" in told
    for page in ("README.md", "docs/operations.md"):
        assert "`make sam-local`" in (ROOT / page).read_text()
