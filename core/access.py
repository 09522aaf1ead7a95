"""Who may come into the app and from where, decided without a server.

Whoever knows the token has the app. It is part of the address that is printed and opened, and then kept in a
cookie; what comes from a page of another address, or to a host name that is not the app's, is refused in any case.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

TOKEN_VARIABLE = "BASISCOPE_TOKEN"
LOCAL = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Access:
    """token: without one everybody may come who can reach the port. names: the host names that the app answers to.
    any_ip: it answers to every IP address, too, which nobody's name can stand for. address: the address by which
    people reach it, where a proxy stands before it. users: the e-mail addresses that may log in, with `*`; where
    there are some, a login stands for the token."""

    token: str = ""
    names: tuple[str, ...] = LOCAL
    any_ip: bool = False
    address: str = ""
    users: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The path before all paths: empty, or such as `/basiscope`."""
        return urlsplit(self.address).path.rstrip("/")

    @property
    def origin(self) -> str:
        """Scheme, host and port of `address`; empty without one."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}".lower() if self.address else ""

    def knows(self, host: str | None) -> bool:
        """Whether the header Host names this app, whatever the port, which a tunnel changes. A name of somebody
        else's that leads here (DNS rebinding) does not."""
        name = _hostname(host)
        return name is not None and (name in self.names or (self.any_ip and _is_ip(name)))

    def is_own(self, origin: str | None, host: str | None) -> bool:
        """Whether the header Origin is that of a page of this app."""
        own = {f"{scheme}://{host}".lower() for scheme in ("http", "https")} | {self.origin}
        return bool(origin and host) and str(origin).lower() in own

    def opens(self, token: str | None) -> bool:
        return hmac.compare_digest(str(token or "").encode(), self.token.encode())

    def lets_in(self, email: object) -> bool:
        """Whether who has logged in with this address may come in."""
        return any(fnmatchcase(str(email or "").lower(), user.lower()) for user in self.users)

    def link(self, port: int, path: str = "/") -> str:
        """The address to open."""
        name = f"[{self.names[0]}]" if ":" in self.names[0] else self.names[0]
        place = self.address.rstrip("/") or f"http://{name}:{port}"
        return f"{place}{path}" + (f"?{urlencode({'token': self.token})}" if self.token else "")


_here: Access | None = None


def set_access(access: Access) -> None:
    """Have the server of this process let in by these rules; the environment, which jobs inherit, has them not."""
    global _here
    _here = access


def access() -> Access:
    """The rules of this process; where none were set, this machine's own names and a new token."""
    global _here
    if _here is None:
        _here = Access(new_token())
    return _here


def new_token() -> str:
    """BASISCOPE_TOKEN, which is then forgotten, so that no job inherits it; without it a random one."""
    return os.environ.pop(TOKEN_VARIABLE, "") or secrets.token_urlsafe(24)


def is_served() -> bool:
    """Whether there are rules in this process: not where Streamlit runs app.py by itself, with no door."""
    return _here is not None


def cookie_name(port: int) -> str:
    """A browser sends the cookies of all ports of a host; so each app has its own."""
    return f"basiscope_token_{port}"


def pasted_token(text: str) -> str:
    """The token of a text that is one, or an address with it."""
    text = text.strip()
    return parse_qs(urlsplit(text).query).get("token", [text])[0]


def shared(access: Access, host: str) -> Access:
    """The same, for people on other machines: any address of this one, and its names; first the one by which they
    reach what listens on `host`."""
    here = [socket.gethostname(), socket.getfqdn(), urlsplit(access.address).hostname or ""]
    first = [] if host in LOCAL else here[:1] if host in WILDCARDS else [host]
    names = dict.fromkeys(name.lower() for name in (*first, *access.names, *here) if name)
    return replace(access, names=tuple(names), any_ip=True)


def _hostname(host: str | None) -> str | None:
    """The name in a header Host, without port and brackets; None where it is none."""
    with suppress(ValueError):
        parts = urlsplit(f"//{host or ''}")
        _ = parts.port
        if not (parts.path or parts.query or parts.fragment or parts.username or parts.password):
            return (parts.hostname or "").rstrip(".") or None
    return None


def _is_ip(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


# --- the address of an app that is open ---------------------------------------------------------------------


@contextmanager
def kept_address(folder: Path, port: int, link: str) -> Iterator[Path]:
    """While the app runs, its address in files that only this user can read: for the same command given again, and
    as a page that leads there, with which a browser is opened, since everybody can see a browser's command line.
    Yields the page's path."""
    note, page = _note(folder, port), folder / f"{port}.html"
    try:
        _write_private(note, json.dumps({"link": link, "pid": os.getpid()}))
        _write_private(page, f'<!doctype html><meta http-equiv="refresh" content="0;url={link}">')
        yield page
    finally:
        for path in (note, page):
            with suppress(OSError):
                path.unlink()


def open_address(folder: Path, port: int) -> str | None:
    """The address of the app that runs on this port and keeps it in `folder`; None where there is none."""
    import psutil

    with suppress(OSError, ValueError, KeyError, TypeError):
        note = _note(folder, port)
        found = json.loads(note.read_text(encoding="utf-8"))
        is_own = note.stat().st_uid == os.getuid()
        return str(found["link"]) if is_own and psutil.pid_exists(int(found["pid"])) else None
    return None


def _note(folder: Path, port: int) -> Path:
    return folder / f"{port}.json"


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # of an app that was killed; another user's would not be ours to read
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
