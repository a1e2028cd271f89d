"""Sets and gets through the Python client of Pegasus, pypegasus3 from PyPI.

    client.py [-expect-error TABLE | -load SECONDS] META_IP:PORT[,META_IP:PORT...] TABLE...

In each table a key is set and read back, and "ok TABLE" is printed. Then the table of -expect-error is opened too, which
has to fail soon and with an error that has a name; "error TABLE: name" is printed. Exit code 0 if all went as it should.

With -load the tables are opened one after the other, so that the last is opened when the time is over, and meanwhile
keys are set and read back all the time. Each failure is printed, and in the end "load ok=N failed=N".

Quirks of the client that matter here:
  - it asks all MetaServers at once, over new connections each time, and takes the first good answer in their order;
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

from twisted.internet import defer, reactor, task

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
def set_and_get(metas, table):
    client = Pegasus(metas, table)
    try:
        yield open_table(client)
        yield set_and_get_in(client, table)
    finally:
        client.close()


@defer.inlineCallbacks
def open_table(client):
    opened = yield client.init()
    if opened is not True:
        raise Failed("init failed")


@defer.inlineCallbacks
def set_and_get_in(client, table):
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


@defer.inlineCallbacks
def load(metas, tables, seconds):
    clients, counts = [], {"ok": 0, "failed": 0}

    @defer.inlineCallbacks
    def count(what, deferred):
        try:
            yield deferred
        except Exception as failed:
            counts["failed"] += 1
            print(f"failed: {what}: {failed!r}", flush=True)
            return False
        counts["ok"] += 1
        return True

    start, asked = time.monotonic(), 0
    while asked < len(tables) or time.monotonic() - start < seconds:
        if asked < len(tables) and time.monotonic() - start >= seconds * asked / len(tables):
            client = Pegasus(metas, tables[asked])
            if (yield count(f"open {tables[asked]}", open_table(client))):
                clients.append((client, tables[asked]))
            asked += 1
        if clients:
            client, table = clients[counts["ok"] % len(clients)]
            yield count(f"set and get in {table}", set_and_get_in(client, table))
        yield task.deferLater(reactor, 0.005, lambda: None)
    for client, _ in clients:
        client.close()
    print(f"load ok={counts['ok']} failed={counts['failed']}", flush=True)
    if counts["failed"]:
        raise SystemExit(1)


@defer.inlineCallbacks
def fail_to_open(metas, table):
    errors = NamedErrors()
    logging.getLogger("pgclient").addHandler(errors)
    client = Pegasus(metas, table)
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
    metas = args.metas.split(",")
    table = None
    if args.load:
        yield load(metas, args.tables, args.load)
        return
    try:
        for table in args.tables:
            yield set_and_get(metas, table)
            print(f"ok {table}", flush=True)
        if args.expect_error:
            table = args.expect_error
            name = yield fail_to_open(metas, table)
            print(f"error {table}: {name}", flush=True)
    except Failed as failed:
        print(f"failed: table {table}: {failed}", flush=True)
        raise SystemExit(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-expect-error", "--expect-error", metavar="TABLE")
    parser.add_argument("-load", "--load", metavar="SECONDS", type=float, default=0)
    parser.add_argument("metas", metavar="META_IP:PORT[,...]")
    parser.add_argument("tables", metavar="TABLE", nargs="*")
    args = parser.parse_args()
    if not args.tables and not args.expect_error:
        parser.error("no table")
    task.react(run, [args])


if __name__ == "__main__":
    main()
