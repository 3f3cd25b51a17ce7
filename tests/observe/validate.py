#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""validate.py SCHEMA < LINES: exits 3 where a line is not what the schema says, or there is a field it does not know."""
import json
import sys

import jsonschema

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
jsonschema.Draft202012Validator.check_schema(schema)
strict = jsonschema.Draft202012Validator({**schema, "additionalProperties": False})
lines = sys.stdin.readlines()
wrong = [f"{error.json_path}: {error.message}" for line in lines for error in strict.iter_errors(json.loads(line))]
if not lines:
    wrong.append("no line came")
print("\n".join(wrong[:20]) or f"{len(lines)} lines are valid")
sys.exit(3 if wrong else 0)
