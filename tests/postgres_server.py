"""A PostgreSQL server of the tests' own: on loopback, in a temporary folder, gone when the session ends."""

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

_SETTINGS = (
    "fsync=off",  # nothing in it outlives the tests
    "synchronous_commit=off",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "max_connections=60",
    "listen_addresses=127.0.0.1",
)


def missing() -> str:
    """Why no server can be started here; "" if one can."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed (pip install 'stmbench[postgres]')"
    if _programs() is None:
        return "PostgreSQL is not installed (initdb, pg_ctl)"
    if os.geteuid() == 0 and _user() is None:
        return "PostgreSQL refuses root, and there is no user postgres or nobody"
    return ""


_SCRIPT = """
initdb -D data -A trust -U tests -E UTF8 --locale=C --no-sync >log 2>&1 &&
pg_ctl -D data start -w -t 60 -l log -o "$1" >>log 2>&1 && echo ready || exit 1
cat >/dev/null
pg_ctl -D data stop -w -t 60 -m immediate >>log 2>&1
"""  # `cat` ends when we let go of its input, or die


@contextlib.contextmanager
def running() -> Iterator[str]:
    """A running server; yields the URL of its empty database."""
    folder, programs, user = Path(tempfile.mkdtemp(prefix="stmbench-postgres-")), _programs(), _user()
    port = _free_port()
    settings = (f"port={port}", f"unix_socket_directories={folder}", *_SETTINGS)
    if user:
        shutil.chown(folder, user)
    server = subprocess.Popen(
        ["sh", "-c", _SCRIPT, "sh", " ".join(f"-c {setting}" for setting in settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC", "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    try:
        with server:  # which closes its input, and waits
            assert server.stdout
            assert server.stdout.readline() == "ready\n", (folder / "log").read_text()
            yield f"postgresql+psycopg://tests@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl: Debian keeps it off PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    found = [*installed, *filter(None, [shutil.which("initdb")])]  # the one on PATH before any other
    return Path(found[-1]).resolve().parent if found else None


def _user() -> str | None:
    """Whom to run it as, where we are root."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((n for n in ("postgres", "nobody") if n in names), None) if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
