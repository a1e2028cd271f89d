"""Sets and gets through the Python client of Pegasus, pypegasus3 from PyPI.

    client.py [-expect-error TABLE] META_IP:PORT TABLE...

In each table a key is set and read back, and "ok TABLE" is printed. Then the table of -expect-error is opened too, which
has to fail soon and with an error that has a name; "error TABLE: name" is printed. Exit code 0 if all went as it should.

Quirks of the client that matter here:
  - a client object is one table's, with a connection of its own to the MetaServer;
  - a host name as the address of a MetaServer makes it raise: only IPv4 addresses will do;
  - it gives up a query after 2 s, so that the proxy has to have an answer, even a bad one, before;
  - of an answer with an error, init() tells only that it failed: the name of the error goes to the log, where it is
    picked up here;
  - it logs to ./pegasus.log from the moment it is imported, hence the temporary directory.
"""

import argparse
import logging
import os
import re
import secrets
import tempfile
import time

from twisted.internet import defer, task

LOG_DIRECTORY = tempfile.TemporaryDirectory(prefix="pypegasus3-")
os.chdir(LOG_DIRECTORY.name)
from pypegasus.pgclient import Pegasus, error_types  # noqa: E402, it opens its log where we are

ERROR_DUE_S = 2
"""A MetaServer answers in milliseconds, and the proxy owes an answer within 1.5 s."""


class Failed(Exception):
    """What did not go as it should."""


class NamedErrors(logging.Handler):
    """Collects the error names which the client logs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        self.names += re.findall(r"ERR_[A-Z_]+", record.getMessage())


@defer.inlineCallbacks
def set_and_get(meta, table):
    client = Pegasus([meta], table)
    try:
        opened = yield client.init()
        if opened is not True:
            raise Failed("init failed")

        suffix = secrets.token_hex(8)
        key, value = f"key-{suffix}".encode(), f"value of {table} {suffix}".encode()
        code, _ = yield client.set(key, b"sort", value)
        if code != error_types.ERR_OK.value:
            raise Failed(f"set: {error_types(code).name}")
        code, got = yield client.get(key, b"sort")
        if code != error_types.ERR_OK.value:
            raise Failed(f"get: {error_types(code).name}")
        if got != value:
            raise Failed(f"get: want {value!r}, got {got!r}")
    finally:
        client.close()


@defer.inlineCallbacks
def fail_to_open(meta, table):
    errors = NamedErrors()
    logging.getLogger("pgclient").addHandler(errors)
    client = Pegasus([meta], table)
    try:
        start = time.monotonic()
        opened = yield client.init()
        took = time.monotonic() - start
        if opened is True:
            raise Failed("init: want an error, got none")
        if not errors.names:
            raise Failed(f"init: want a named error, got none in {took:.3f} s")
        if took > ERROR_DUE_S:
            raise Failed(f"init: want an error within {ERROR_DUE_S} s, got {errors.names} after {took:.3f} s")
        return errors.names[0]
    finally:
        client.close()


@defer.inlineCallbacks
def run(_reactor, args):
    table = None
    try:
        for table in args.tables:
            yield set_and_get(args.meta, table)
            print(f"ok {table}", flush=True)
        if args.expect_error:
            table = args.expect_error
            name = yield fail_to_open(args.meta, table)
            print(f"error {table}: {name}", flush=True)
    except Failed as failed:
        print(f"failed: table {table}: {failed}", flush=True)
        raise SystemExit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-expect-error", "--expect-error", metavar="TABLE")
    parser.add_argument("meta", metavar="META_IP:PORT")
    parser.add_argument("tables", metavar="TABLE", nargs="*")
    args = parser.parse_args()
    if not args.tables and not args.expect_error:
        parser.error("no table")
    task.react(run, [args])


if __name__ == "__main__":
    main()
