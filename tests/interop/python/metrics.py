"""Reads metrics with the official Python client of Prometheus, and says what it read.

    metrics.py openmetrics|classic FILE

Prints a JSON object from series, name{label="value",...} with sorted labels, to number. Exit code 0 if the file is all that its
format wants; the classic parser forgives much, so what Prometheus itself would refuse is looked for here too.
"""

import json
import re
import sys

from prometheus_client import parser
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics

READERS = {"openmetrics": read_openmetrics, "classic": parser.text_string_to_metric_families}


def series(sample, names):
    # The classic parser gives every counter its _total, whatever the text says.
    name = sample.name if sample.name in names else sample.name.removesuffix("_total")
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return f"{name}{{{labels}}}" if labels else name


def main():
    kind, path = sys.argv[1:]
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    lines = text.splitlines()
    if kind == "classic":
        strange = [line for line in lines if line in ("# EOF", "") or line.startswith("# UNIT ")]
        if strange:
            sys.exit(f"not for the classic format: {strange}")
    heads = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    if len(heads) != len(set(heads)):
        sys.exit(f"a type comes twice: {heads}")
    names = {re.match("[^{ ]+", line).group() for line in lines if not line.startswith("#")}
    found = {}
    for family in READERS[kind](text):
        if not {family.name, f"{family.name}_total"} & set(heads):
            sys.exit(f"{family.name} has no type")
        for sample in family.samples:
            if series(sample, names) in found:
                sys.exit(f"{series(sample, names)} comes twice")
            found[series(sample, names)] = sample.value
    json.dump(found, sys.stdout, indent=1)


main()
