"""Prints template.yaml as CloudFormation gets it: `python -m infra.translated`.

`make check` lints that too: what SAM passes through unread is checked by CloudFormation alone. Needs a region in
the environment (AWS_DEFAULT_REGION), as the translator does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from local.template_for_emulator import translate

ROOT = Path(__file__).parents[1]


def translated(path: Path) -> dict[str, Any]:
    """The translated template with the addresses that `sam deploy` puts in."""
    template = translate(path, "s3://bucket/functions.zip")
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::CloudFormation::Stack":
            resource["Properties"]["TemplateURL"] = "https://bucket.s3.amazonaws.com/nested.template"
    return template


if __name__ == "__main__":
    print(json.dumps(translated(ROOT / "template.yaml"), indent=1))
