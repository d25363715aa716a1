# SPDX-License-Identifier: MIT OR Apache-2.0
"""Floods of small UDP datagrams for the benches: many datagrams in a system call, so that Python is not the limit.

Run in a namespace, each says `ready` and then does what a line on its standard input tells it:

    datagrams.py send ADDRESS PORT BYTES     SECONDS RATE -> sends so many a second, as fast as it can with 0
    datagrams.py count PORT                  an empty line -> ends when no more arrive

At its end each prints JSON. A flood begins when all its programs are ready, so that none disturbs the start of another.
"""
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time

from sites import Failed, libc

BATCH = 64
BUFFER_BYTES = 16 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
QUIET_S, LONGEST_WAIT_S = 0.3, 5                      # after the last datagram; for a path that holds many of them


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.POINTER(Iovec)), ("iovlen", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]


class Mmsghdr(ctypes.Structure):
    _fields_ = [("header", Msghdr), ("len", ctypes.c_uint)]


def messages(buffer, count):
    """`count` messages for sendmmsg and recvmmsg, all with the bytes of this buffer."""
    vector = Iovec(ctypes.cast(buffer, ctypes.c_void_p), len(buffer))
    batch = (Mmsghdr * count)()
    for message in batch:
        message.header.iov, message.header.iovlen = ctypes.pointer(vector), 1
    batch.buffer = buffer                               # lives as long as they do
    return batch


def flood(sites, source, target, address, ports, size, seconds, rate):
    """One flow to each port, all of them at once. Returns how many datagrams were sent and received in all, and in what time."""
    def start(name, *what):
        return sites.spawn(name, sys.executable, "-B", os.path.abspath(__file__), *what, log="datagrams.log",
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    counters = [start(target, "count", port) for port in ports]
    senders = [start(source, "send", address, port, size) for port in ports]
    for child in counters + senders:
        if child.stdout.readline().strip() != "ready":
            raise Failed("a flood did not start: see datagrams.log")
    sent = results(senders, "%g %g\n" % (seconds, rate / len(ports)), seconds)
    received = results(counters, "\n", LONGEST_WAIT_S)
    return {"sent": sum(each["sent"] for each in sent), "received": sum(each["received"] for each in received),
            "seconds": max(each["seconds"] for each in sent + received)}


def results(children, line, seconds):
    for child in children:
        child.stdin.write(line)
        child.stdin.flush()
    return [json.loads(child.communicate(timeout=seconds + 20)[0] or "{}") for child in children]


def highest_rate(attempt, begin, most_lost=0.01, steps=6):
    """Searches the highest rate at which attempt(rate) loses no more than that; each that counts was seen twice. In datagrams a second."""
    best, low, high, rate = 0, 0, None, begin
    for _ in range(steps):
        tries = [attempt(rate)]
        if is_kept(tries[0], most_lost):
            tries.append(attempt(rate))
        if all(is_kept(each, most_lost) for each in tries):
            best, low = max(best, min(per_second(each) for each in tries)), rate
            if per_second(tries[0]) < 0.9 * rate:
                break                                   # the sender is the limit
        else:
            high = rate
        rate = (low + high) / 2 if high else low * 1.5
        if high and high - low < 0.04 * high:
            break
    return best


def is_kept(measured, most_lost):
    return measured["received"] >= (1 - most_lost) * measured["sent"]


def per_second(measured):
    return measured["received"] / measured["seconds"]


# --- the programs inside the sites ----------------------------------------------------------------

def send(address, port, size):
    sock = udp_socket()
    sock.connect((address, int(port)))
    batch = messages(ctypes.create_string_buffer(int(size)), BATCH)
    print("ready", flush=True)
    seconds, rate = map(float, sys.stdin.readline().split())
    begun, sent = time.monotonic(), 0
    while time.monotonic() < begun + seconds:
        due = int((time.monotonic() - begun) * rate) - sent if rate else BATCH
        if due > 0:
            sent += max(0, libc.sendmmsg(sock.fileno(), batch, min(due, BATCH), 0))
        else:
            time.sleep(0.0001)
    print(json.dumps({"sent": sent, "seconds": time.monotonic() - begun}))


def count(port):
    sock = udp_socket()
    sock.bind(("", int(port)))
    batch = messages(ctypes.create_string_buffer(2048), BATCH)
    print("ready", flush=True)
    received, first, last, told = 0, None, None, None
    watched = [sock, sys.stdin]
    while told is None or time.monotonic() < min(told + LONGEST_WAIT_S, max(told, last or 0) + QUIET_S):
        readable = select.select(watched, [], [], QUIET_S / 3)[0]
        if sys.stdin in readable:
            watched, told = [sock], time.monotonic()
        if sock in readable:
            received += max(0, libc.recvmmsg(sock.fileno(), batch, BATCH, socket.MSG_DONTWAIT, None))
            last = time.monotonic()
            first = first or last
    print(json.dumps({"received": received, "seconds": last - first if first else 0}))


def udp_socket():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    return sock


if __name__ == "__main__":
    {"send": send, "count": count}[sys.argv[1]](*sys.argv[2:])
