"""Refuses the network to this process, and notes every attempt in the file that FASTCLOAK_TEST_NETWORK names.

conftest.py loads it, and puts its folder into PYTHONPATH: Python imports a module of this name at its start, so that
Python programs which tests start are refused too. Sockets of the machine itself (AF_UNIX, loopback, its own addresses)
work. Ray's dashboard is refused but not noted: at its start it asks, whatever its settings, which cloud it is in.
"""

import ipaddress
import os
import socket
import sys

VARIABLE = "FASTCLOAK_TEST_NETWORK"
# Event of sys.addaudithook -> which of its arguments is the address or the host.
EVENTS = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
    "socket.gethostbyaddr": 0,
    "socket.getnameinfo": 0,
}


def is_here(address):
    """Whether an address, (host, port) or host or path, is on this machine."""
    if isinstance(address, tuple):
        address = address[0] if address else ""
    elif isinstance(address, str) and address.startswith("/"):
        return True
    if not isinstance(address, (str, bytes)):  # None is this machine; numbers are netlink's
        return True
    host = address.decode("latin-1") if isinstance(address, bytes) else address
    if host in ("", "localhost") or host.startswith("\0"):
        return True
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return number.is_loopback or is_own(number)


def is_own(number):
    """Whether an address is one of this machine's: only those can be bound."""
    with socket.socket(socket.AF_INET if number.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(number), 0))
        except OSError:
            return False
    return True


def refuse(event, arguments):
    if event not in EVENTS or is_here(arguments[EVENTS[event]]):
        return
    line = f"{event} {arguments[EVENTS[event]]!r} in process {os.getpid()}: {' '.join(sys.argv)[:200]}"
    if os.environ.get(VARIABLE) and not sys.argv[0].endswith("/ray/dashboard/dashboard.py"):
        with open(os.environ[VARIABLE], "a") as log:
            log.write(line + "\n")
    raise PermissionError(f"tests must not use the network: {line}")


if os.environ.get(VARIABLE):
    sys.addaudithook(refuse)
