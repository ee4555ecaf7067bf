"""Makes certificates of one group for an attacker and writes them, with what must come of them, as JSON.

    python tests/tools/certificates GROUP

The output: {"roots": [PEM], "cases": [{"name", "expect": "accept" or "refuse", "chain": PEM, "key": PEM or null}],
"requests": [{"name", "expect", "request": PEM}]}.
"""

import base64
import json
import sys

import chains
import keys
import names
import requests
import shapes
from forge import World

GROUPS = {
    **names.GROUPS,
    **shapes.GROUPS,
    **keys.GROUPS,
    **chains.GROUPS,
    **requests.GROUPS,
}


def pem(label: str, der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in GROUPS:
        sys.exit(f"usage: certificates GROUP, one of {' '.join(sorted(GROUPS))}")
    world = World.new()
    signing_requests = GROUPS[sys.argv[1]](world) or []
    cases = [
        case
        | {
            "chain": "".join(pem("CERTIFICATE", der) for der in case["chain"]),
            "key": case["key"] and pem("PRIVATE KEY", case["key"]),
        }
        for case in world.cases
    ]
    json.dump(
        {
            "roots": [pem("CERTIFICATE", world.root.certificate)],
            "cases": cases,
            "requests": [one | {"request": pem("CERTIFICATE REQUEST", one["request"])} for one in signing_requests],
        },
        sys.stdout,
    )


main()
