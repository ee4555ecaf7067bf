"""Validates a CycloneDX document on standard input against the schema that the CycloneDX project ships.

Strict: what the schema does not know is a fault, and formats (URNs, times) are checked. Prints nothing and ends with 0 if the
document is in order, else prints what is wrong and ends with 1.
"""

import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read())
if fault is not None:
    print(str(fault)[:2000])
    sys.exit(1)
