#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The test vectors of PROTOCOL.md, computed a second time and from the text alone.

    scripts/vectors.py            check that tests/vectors/v1.json is what this program computes
    scripts/vectors.py --write    write it

Nothing here is shared with the Rust code, and nothing is installed: X25519, ChaCha20-Poly1305,
XChaCha20, AES-256-GCM, AEGIS and Noise are written out below, BLAKE2s, SHA-256 and HMAC are Python's. It is
slow and not constant in time: for vectors, never for traffic.
"""
import hashlib
import hmac
import ipaddress
import json
import pathlib
import struct
import sys

FILE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "vectors" / "v1.json"

# --- primitives -----------------------------------------------------------------------------------


def x25519(scalar, u):
    """RFC 7748, section 5."""
    p = 2**255 - 19
    k = bytearray(scalar)
    k[0] &= 248
    k[31] = k[31] & 127 | 64
    k = int.from_bytes(k, "little")
    x1 = int.from_bytes(u, "little") % 2**255 % p
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in range(254, -1, -1):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, e * (aa + 121665 * e) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def public(private):
    return x25519(private, b"\x09" + bytes(31))


def chacha_rounds(state):
    x = list(state)

    def quarter(a, b, c, d):
        for left, right, turn, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[left] = x[left] + x[right] & 0xFFFFFFFF
            x[turn] ^= x[left]
            x[turn] = (x[turn] << by | x[turn] >> 32 - by) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for i in range(4):
            quarter(i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
    return x


def chacha_state(key, tail):
    return list(struct.unpack("<16I", b"expand 32-byte k" + key + tail))


def chacha20(key, nonce, counter, data):
    """RFC 8439, section 2.4."""
    out = b""
    for at in range(0, len(data), 64):
        state = chacha_state(key, struct.pack("<I", counter + at // 64) + nonce)
        stream = struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(chacha_rounds(state), state)))
        out += bytes(a ^ b for a, b in zip(data[at:at + 64], stream))
    return out


def poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at:at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def padded(data):
    return data + bytes(-len(data) % 16)


def chacha20_poly1305(key, nonce, plaintext, aad):
    """RFC 8439, section 2.8: ciphertext and tag."""
    sealed = chacha20(key, nonce, 1, plaintext)
    covered = padded(aad) + padded(sealed) + struct.pack("<QQ", len(aad), len(sealed))
    return sealed + poly1305(chacha20(key, nonce, 0, bytes(32)), covered)


def xchacha20_poly1305(key, nonce, plaintext, aad):
    """draft-irtf-cfrg-xchacha-03."""
    words = chacha_rounds(chacha_state(key, nonce[:16]))
    return chacha20_poly1305(struct.pack("<8I", *words[:4], *words[12:]), bytes(4) + nonce[16:], plaintext, aad)


def times_x(byte):
    return byte << 1 ^ (0x11B if byte & 0x80 else 0)


def aes_sbox():
    box, p, q = [0] * 256, 1, 1
    while True:
        p ^= times_x(p)                                 # times 3, a generator
        for shift in (1, 2, 4):                         # divided by 3
            q ^= q << shift & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        box[p] = q ^ 0x63
        for turn in (1, 2, 3, 4):
            box[p] ^= (q << turn | q >> 8 - turn) & 0xFF
        if p == 1:
            box[0] = 0x63
            return box


SBOX = aes_sbox()


def aes_round(block, round_key, last=False):
    """A round of FIPS 197; the last one does not mix columns."""
    state = [SBOX[block[(i + 4 * (i % 4)) % 16]] for i in range(16)]
    if not last:
        mixed = []
        for at in range(0, 16, 4):
            column = state[at:at + 4]
            for i in range(4):
                a, b, c, d = (column[(i + n) % 4] for n in range(4))
                mixed.append(times_x(a) ^ times_x(b) ^ b ^ c ^ d)
        state = mixed
    return bytes(a ^ b for a, b in zip(state, round_key))


def aes256(key, block):
    """FIPS 197."""
    words, round_constant = [list(key[at:at + 4]) for at in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = list(words[-1])
        if i % 8 == 0:
            word = [SBOX[b] for b in word[1:] + word[:1]]
            word[0] ^= round_constant
            round_constant = times_x(round_constant)
        elif i % 8 == 4:
            word = [SBOX[b] for b in word]
        words.append([a ^ b for a, b in zip(word, words[i - 8])])
    keys = [sum(words[at:at + 4], []) for at in range(0, 60, 4)]
    state = bytes(a ^ b for a, b in zip(block, keys[0]))
    for number, round_key in enumerate(keys[1:], 1):
        state = aes_round(state, round_key, last=number == 14)
    return state


def aes256_gcm(key, nonce, plaintext, aad):
    """NIST SP 800-38D, nonces of 96 bits: ciphertext and tag."""
    sealed = b""
    for number, at in enumerate(range(0, len(plaintext), 16), 2):
        stream = aes256(key, nonce + struct.pack(">I", number))
        sealed += bytes(a ^ b for a, b in zip(plaintext[at:at + 16], stream))
    h, total = int.from_bytes(aes256(key, bytes(16)), "big"), 0
    covered = padded(aad) + padded(sealed) + struct.pack(">QQ", 8 * len(aad), 8 * len(sealed))
    for at in range(0, len(covered), 16):
        x, v, total = total ^ int.from_bytes(covered[at:at + 16], "big"), h, 0
        for bit in range(127, -1, -1):
            if x >> bit & 1:
                total ^= v
            v = v >> 1 ^ (0xE1 << 120 if v & 1 else 0)
    mask = aes256(key, nonce + b"\x00\x00\x00\x01")
    return sealed + bytes(a ^ b for a, b in zip(total.to_bytes(16, "big"), mask))


def xor(*blocks):
    total = 0
    for block in blocks:
        total ^= int.from_bytes(block, "big")
    return total.to_bytes(len(blocks[0]), "big")


def both(a, b):
    return bytes(x & y for x, y in zip(a, b))


class Aegis128X4:
    """RFC 10032, section "The AEGIS-128X Algorithm", of degree 4: four states of eight AES blocks, which
    differ only in their context blocks and in the part of the input that each one absorbs."""

    DEGREE = 4
    RATE = 32 * DEGREE
    C0 = bytes.fromhex("000101020305080d1522375990e97962")
    C1 = bytes.fromhex("db3d18556dc22ff12011314273b528dd")

    def __init__(self, key, nonce):
        start = [xor(key, nonce), self.C1, self.C0, self.C1, xor(key, nonce)]
        start += [xor(key, self.C0), xor(key, self.C1), xor(key, self.C0)]
        self.states = [list(start) for _ in range(self.DEGREE)]
        for _ in range(10):
            for lane, state in enumerate(self.states):
                context = bytes([lane, self.DEGREE - 1]) + bytes(14)
                state[3], state[7] = xor(state[3], context), xor(state[7], context)
            self.update([nonce] * self.DEGREE, [key] * self.DEGREE)

    def update(self, first, second):
        for lane, s in enumerate(self.states):
            keys = [xor(s[0], first[lane]), *s[1:4], xor(s[4], second[lane]), *s[5:]]
            self.states[lane] = [aes_round(s[i - 1], keys[i]) for i in range(8)]

    def halves(self, block):
        pieces = [block[at:at + 16] for at in range(0, self.RATE, 16)]
        return pieces[:self.DEGREE], pieces[self.DEGREE:]

    def blocks(self, data):
        data += bytes(-len(data) % self.RATE)
        return [data[at:at + self.RATE] for at in range(0, len(data), self.RATE)]

    def seal(self, plaintext, aad):
        for block in self.blocks(aad):
            self.update(*self.halves(block))
        sealed = b""
        for block in self.blocks(plaintext):
            stream = b"".join(xor(s[6], s[1], both(s[2], s[3])) for s in self.states)
            stream += b"".join(xor(s[2], s[5], both(s[6], s[7])) for s in self.states)
            sealed += xor(block, stream)
            self.update(*self.halves(block))
        lengths = struct.pack("<QQ", 8 * len(aad), 8 * len(plaintext))
        covered = [xor(state[2], lengths) for state in self.states]
        for _ in range(7):
            self.update(covered, covered)
        return sealed[:len(plaintext)] + xor(*(block for state in self.states for block in state[:7]))


def aegis_128x4(key, nonce, plaintext, aad):
    """Ciphertext and tag."""
    return Aegis128X4(key, nonce).seal(plaintext, aad)


def aegis_with_prefix(key, counter, plaintext, aad):
    """The last eight bytes of the key are the first of the nonce (PROTOCOL.md, "Datagrams")."""
    return aegis_128x4(key[:16], key[16:] + counter, plaintext, aad)


def blake2s(data, key=b"", size=32):
    return hashlib.blake2s(data, key=key, digest_size=size).digest()


def self_check():
    """Published vectors, so that an error below is one of the protocol."""
    h = bytes.fromhex
    assert x25519(h("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"),
                  h("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")) == \
        h("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")              # RFC 7748, 5.2
    sunscreen = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
                 b"the future, sunscreen would be it.")
    assert chacha20_poly1305(bytes(range(0x80, 0xA0)), h("070000004041424344454647"), sunscreen,
                             h("50515253c0c1c2c3c4c5c6c7"))[-16:] == h("1ae10b594f09e26a7e902ecbd0600691")  # RFC 8439, 2.8.2
    assert xchacha20_poly1305(bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58)), sunscreen,
                              h("50515253c0c1c2c3c4c5c6c7"))[-16:] == h("c0875924c1c7987947deafd8780acf49")  # draft, A.3.1
    assert aes256(h("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"),
                  h("00112233445566778899aabbccddeeff")) == h("8ea2b7ca516745bfeafc49904b496089")  # FIPS 197, C.3
    assert aes256_gcm(bytes(32), bytes(12), bytes(16), b"") == \
        h("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919")              # GCM, test case 14
    assert aegis_128x4(bytes(range(16)), bytes(range(16, 32)), h("04050607") * 30, h("0102030401020304"))[-24:] == \
        h("594b8dd64aed2a7e" "0e56ab94e2e85db80f9d54010caabfb4")                           # RFC 10032, AEGIS-128X4


# --- Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (PROTOCOL.md, "Handshake") --------------------------------

PATTERN = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
PROLOGUE = b"patchcord v1"


def noise_hkdf(chaining_key, material, outputs):
    def mac(key, data):
        return hmac.new(key, data, hashlib.blake2s).digest()

    secret, result, last = mac(chaining_key, material), [], b""
    for number in range(1, outputs + 1):
        last = mac(secret, last + bytes([number]))
        result.append(last)
    return result


class Noise:
    def __init__(self, responder_public):
        self.h = self.ck = blake2s(PATTERN)
        self.mix_hash(PROLOGUE)
        self.mix_hash(responder_public)

    def mix_hash(self, data):
        self.h = blake2s(self.h + data)

    def mix_key(self, material):
        self.ck, self.k = noise_hkdf(self.ck, material, 2)
        self.n = 0

    def mix_key_and_hash(self, material):
        self.ck, temp, self.k = noise_hkdf(self.ck, material, 3)
        self.mix_hash(temp)
        self.n = 0

    def ephemeral(self, key):
        self.mix_hash(key)
        self.mix_key(key)                               # because of the preshared key
        return key

    def seal(self, plaintext):
        sealed = chacha20_poly1305(self.k, bytes(4) + struct.pack("<Q", self.n), plaintext, self.h)
        self.n += 1
        self.mix_hash(sealed)
        return sealed

    def split(self):
        return noise_hkdf(self.ck, b"", 2)


def handshake(keys, psk, first_payload, second_payload):
    """Messages 1 and 2, and the keys: initiator to responder, responder to initiator."""
    i, r, ie, re = (bytes.fromhex(keys[name]) for name in (
        "initiator_private", "responder_private", "initiator_ephemeral", "responder_ephemeral"))
    noise = Noise(public(r))
    first = noise.ephemeral(public(ie))
    noise.mix_key(x25519(ie, public(r)))                # es
    first += noise.seal(public(i))                      # s
    noise.mix_key(x25519(i, public(r)))                 # ss
    first += noise.seal(first_payload)
    second = noise.ephemeral(public(re))
    noise.mix_key(x25519(re, public(ie)))               # ee
    noise.mix_key(x25519(re, public(i)))                # se
    noise.mix_key_and_hash(psk)                         # psk
    second += noise.seal(second_payload)
    return first, second, noise.split()


# --- messages ---------------------------------------------------------------------------------------

VERSION, INITIATION, RESPONSE, COOKIE_REPLY, FRAME, CHUNKS = 1, 1, 2, 3, 4, 5
FRAME_CHUNK, FRAGMENT_CHUNK, PARTIAL_CHECKSUM_CHUNK, OFFLOAD_CHUNK, ECHO_REQUEST, ECHO_REPLY, CLOSE = 1, 2, 3, 4, 16, 17, 18
CIPHERS = {1: aes256_gcm, 2: chacha20_poly1305, 4: aegis_with_prefix}
KEY_LENS = {1: 32, 2: 32, 4: 24}
NONCE_LENS = {1: 12, 2: 12, 4: 8}  # but for what belongs to the key


def u24(value):
    return value.to_bytes(3, "big")


def head(message_type, index):
    return bytes([VERSION << 4 | message_type]) + u24(index)


def tai64n(seconds, nanoseconds):
    return struct.pack(">QI", 2**62 + 10 + seconds, nanoseconds & 0xFF000000)


def with_macs(message, receiver_public, cookie=None):
    mac1 = blake2s(message, key=mac1_key(receiver_public), size=16)
    mac2 = blake2s(message + mac1, key=cookie, size=16) if cookie else bytes(16)
    return message + mac1 + mac2


def mac1_key(receiver_public):
    return blake2s(b"patchcord1 mac1" + receiver_public)


def cookie_key(responder_public):
    return blake2s(b"patchcord1 cookie" + responder_public)


def cookie_of(secret, address, udp_port):
    return blake2s(ipaddress.ip_address(address).packed + struct.pack(">H", udp_port), key=secret, size=16)


def lane_key(split_key, cipher, lane):
    """HKDF-Expand (RFC 5869) with SHA-256; no key is longer than one block."""
    info = b"patchcord1 lane" + bytes([cipher, lane])
    return hmac.new(split_key, info + b"\x01", hashlib.sha256).digest()[:KEY_LENS[cipher]]


def seal(split_key, cipher, message_type, receiver, lane, sequence, plaintext):
    counter = struct.pack(">Q", lane << 56 | sequence)
    header = head(message_type, receiver) + counter
    nonce = counter.rjust(NONCE_LENS[cipher], b"\0")
    return header + CIPHERS[cipher](lane_key(split_key, cipher, lane), nonce, plaintext, header)


def chunk(kind, body):
    return struct.pack(">BH", kind, len(body)) + body


def fragment(frame_id, total, offset, piece):
    return chunk(FRAGMENT_CHUNK, struct.pack(">I", frame_id) + u24(total) + u24(offset) + piece)


def partial_checksum_frame(offload, frame):
    return chunk(PARTIAL_CHECKSUM_CHUNK, struct.pack(">HH", offload["checksum_start"], offload["checksum_offset"]) + frame)


def offload_chunk(frame_id, total, offload, headers):
    segmentation = offload["transport"] | (0x80 if offload["cwr"] else 0)
    return chunk(OFFLOAD_CHUNK, struct.pack(">I", frame_id) + u24(total) + struct.pack(
        ">BHHH", segmentation, offload["segment_size"], offload["checksum_start"], offload["checksum_offset"]) + headers)


OVERHEAD, PARTIAL_CHECKSUM_HEADER, OFFLOAD_HEADER, FRAGMENT_HEADER, MIN_PIECE = 28, 7, 17, 13, 32


def pack(frames, datagram_len):
    """PROTOCOL.md, "Datagrams" and "Offloads": the plaintexts, each with its message type. A frame is bytes, or bytes
    and what is open in them."""
    room_of_one = datagram_len - OVERHEAD
    done, filling = [], None                            # filling: a list of chunks

    def close():
        nonlocal filling
        if filling is not None:
            lone_frame = len(filling) == 1 and filling[0][0] == FRAME_CHUNK
            done.append((FRAME, filling[0][3:]) if lone_frame else (CHUNKS, b"".join(filling)))
        filling = None

    def room():
        return room_of_one - sum(map(len, filling)) if filling is not None else 0

    def make_room(needed):
        nonlocal filling
        if room() < needed:
            if filling and (len(filling) > 1 or filling[0][0] != FRAME_CHUNK):
                filling.append(bytes(room()))           # padding
            close()
            filling = []

    def whole(one):
        nonlocal filling
        if filling is None or len(one) > room():
            close()
            filling = []
        filling.append(one)

    for frame_id, item in enumerate(frames):
        frame, offload = item if isinstance(item, tuple) else (item, None)
        if offload is None and len(frame) <= room_of_one:
            whole(chunk(FRAME_CHUNK, frame))
            continue
        if offload and not offload["segment_size"] and len(frame) + PARTIAL_CHECKSUM_HEADER <= room_of_one:
            whole(partial_checksum_frame(offload, frame))
            continue
        offset = 0
        if offload:
            offset = offload["headers_len"]
            headers = offload_chunk(frame_id, len(frame), offload, frame[:offset])
            make_room(len(headers))
            filling.append(headers)
        while offset < len(frame):
            make_room(FRAGMENT_HEADER + min(MIN_PIECE, len(frame) - offset))
            piece = frame[offset:offset + room() - FRAGMENT_HEADER]
            filling.append(fragment(frame_id, len(frame), offset, piece))
            offset += len(piece)
        if offload and offload["segment_size"] and len(frame) > 2 * datagram_len:
            make_room(len(headers))
            filling.append(headers)
    close()
    return done


# --- frames with something open -----------------------------------------------------------------------

TCP, UDP = 1, 2


def ones_sum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


class Stream:
    """A TCP or UDP stream, of which any run of segments can be had as one frame with a partial checksum."""

    def __init__(self, transport, ipv6, tag, size, length, fin=False, cwr=False):
        self.transport, self.ipv6, self.tag, self.size, self.fin, self.cwr = transport, ipv6, tag, size, fin, cwr
        self.payload = pattern(length)
        self.segments = -(-length // size)

    def frame(self, first, end):
        """The segments from `first` up to and without `end`."""
        payload = self.payload[first * self.size:end * self.size]
        last = end == self.segments
        if self.transport == TCP:
            flags = 0x10 | (8 if last else 0) | (1 if last and self.fin else 0) | (0x80 if first == 0 and self.cwr else 0)
            sequence = (0xFFFFFF00 + first * self.size) % 2**32
            head, tail = struct.pack(">HHIIBBH", 4000, 5000, sequence, 77, 8 << 4, flags, 512), bytes(2) + b"\1" * 12
        else:
            head, tail = struct.pack(">HHH", 4000, 5000, 8 + len(payload)), b""
        length = len(head) + 2 + len(tail) + len(payload)
        protocol = 6 if self.transport == TCP else 17
        if self.ipv6:
            addresses = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("2001:db8::2").packed
            network = struct.pack(">IHBB", 6 << 28, length, protocol, 64) + addresses
        else:
            addresses = bytes([192, 0, 2, 1, 192, 0, 2, 2])
            network = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, (0xFFFF + first) % 2**16, 0x4000, 64, protocol, 0)
            checksum = 0xFFFF - ones_sum(network + addresses)
            network = network[:10] + struct.pack(">H", checksum) + addresses
        pseudo = ones_sum(addresses + struct.pack(">HH", length, protocol))
        ethernet = bytes.fromhex("02005e10000102005e100002") + (bytes.fromhex("8100002a") if self.tag else b"")
        ethernet += b"\x86\xdd" if self.ipv6 else b"\x08\0"
        return ethernet + network + head + struct.pack(">H", pseudo) + tail + payload

    def offload(self, first, end):
        start = 14 + (4 if self.tag else 0) + (40 if self.ipv6 else 20)
        many = end - first > 1
        headers = start + 32 if self.transport == TCP else start + 8
        return {"transport": self.transport if many else 0, "segment_size": self.size if many else 0,
                "cwr": many and self.cwr and first == 0, "checksum_start": start,
                "checksum_offset": 16 if self.transport == TCP else 6,
                "headers_len": headers if many else start + (18 if self.transport == TCP else 8)}


# --- the vectors ------------------------------------------------------------------------------------


def seed(name):
    return hashlib.sha256(b"patchcord v1 test vector: " + name.encode()).digest()


def pattern(length, start=0):
    return bytes((start + n) % 256 for n in range(length))


def ethernet(length, source):
    header = bytes.fromhex("02005e100001") + bytes.fromhex("02005e1000") + bytes([source]) + b"\x88\xb5"
    return header + pattern(length - len(header), source)


def compute():
    keys = {name: seed(name).hex() for name in (
        "initiator_private", "responder_private", "initiator_ephemeral", "responder_ephemeral", "preshared_key")}
    i, r = (public(bytes.fromhex(keys[name])) for name in ("initiator_private", "responder_private"))
    keys |= {"initiator_public": i.hex(), "responder_public": r.hex()}
    handshakes = [one_handshake(keys, i, r, psk) for psk in (None, keys["preshared_key"])]
    split_key = bytes.fromhex(handshakes[1]["initiator_to_responder"])
    return {
        "about": "Test vectors of PROTOCOL.md, version 1. Made by scripts/vectors.py; bytes are hexadecimal.",
        "keys": keys,
        "timestamps": [{"seconds": s, "nanoseconds": n, "tai64n": tai64n(s, n).hex()}
                       for s, n in ((0, 0), (1, 999_999_999), (1_760_000_000, 123_456_789))],
        "handshakes": handshakes,
        "cookie": cookie_vector(handshakes[1], r),
        "split_key": split_key.hex(),
        "lane_keys": [{"cipher": cipher, "lane": lane, "key": lane_key(split_key, cipher, lane).hex()}
                      for cipher in CIPHERS for lane in (0, 1, 16)],
        "datagrams": [datagram for cipher in CIPHERS for datagram in sealed_datagrams(split_key, cipher)],
        "packing": [vector for cipher in CIPHERS for vector in packing(split_key, cipher)],
        "reassembly": reassembly(),
        "offloads": list(offloads(split_key)),
    }


def one_handshake(keys, initiator_public, responder_public, psk):
    offer = {"timestamp": tai64n(1_760_000_000, 123_456_789).hex(), "network_id": 0x0A0B0C, "ciphers": 3, "flags": 1,
             "lanes": 4, "max_frame": 1522}
    choice = {"cipher": 1, "lanes": 2, "max_frame": 9022}
    first_payload = bytes.fromhex(offer["timestamp"]) + u24(offer["network_id"]) + struct.pack(
        ">BBBH", offer["ciphers"], offer["flags"], offer["lanes"], offer["max_frame"]) + bytes(12)
    second_payload = struct.pack(">BBH", choice["cipher"], choice["lanes"], choice["max_frame"]) + bytes(12)
    noise_1, noise_2, (to_responder, to_initiator) = handshake(
        keys, bytes.fromhex(psk) if psk else bytes(32), first_payload, second_payload)
    initiator_index, responder_index = 0x123456, 0xABCDEF
    return {
        "preshared_key": psk, "initiator_index": initiator_index, "responder_index": responder_index,
        "offer": offer, "choice": choice,
        "initiation": with_macs(head(INITIATION, initiator_index) + noise_1, responder_public).hex(),
        "response": with_macs(
            head(RESPONSE, initiator_index) + u24(responder_index) + b"\0" + noise_2, initiator_public).hex(),
        "initiator_to_responder": to_responder.hex(), "responder_to_initiator": to_initiator.hex(),
    }


def cookie_vector(shaken, responder_public):
    secret, nonce = seed("cookie secret"), seed("cookie nonce")[:24]
    initiation = bytes.fromhex(shaken["initiation"])
    origins = [("192.0.2.1", 51830), ("192.0.2.1", 51831), ("2001:db8::1", 51830)]
    cookies = [cookie_of(secret, *origin) for origin in origins]
    mac1 = initiation[-32:-16]
    sealed = xchacha20_poly1305(cookie_key(responder_public), nonce, cookies[0], mac1)
    return {
        "secret": secret.hex(), "mac1_key": mac1_key(responder_public).hex(), "cookie_key": cookie_key(responder_public).hex(),
        "cookies": [{"address": address, "udp_port": port, "cookie": cookie.hex()}
                    for (address, port), cookie in zip(origins, cookies)],
        "initiation": initiation.hex(), "nonce": nonce.hex(),
        "cookie_reply": (head(COOKIE_REPLY, shaken["initiator_index"]) + nonce + sealed).hex(),
        "initiation_with_mac2": with_macs(initiation[:-32], responder_public, cookies[0]).hex(),
    }


def sealed_datagrams(split_key, cipher):
    token = struct.pack(">Q", 0x0123456789ABCDEF)
    small, other = ethernet(60, 1), ethernet(64, 2)
    for name, message_type, lane, sequence, plaintext in (
        ("one frame", FRAME, 1, 0, small),
        ("a full datagram", FRAME, 1, 6, ethernet(1444, 1)),
        ("a high lane and sequence", FRAME, 16, 2**28 + 2**24 - 1, small),
        ("two frames", CHUNKS, 1, 1, chunk(FRAME_CHUNK, small) + chunk(FRAME_CHUNK, other)),
        ("a fragment", CHUNKS, 1, 2, fragment(0xDEADBEEF, 0x012345, 0x010203, pattern(40))),
        ("a frame with a partial checksum", CHUNKS, 1, 4, partial_checksum_frame({"checksum_start": 14, "checksum_offset": 6}, small)),
        ("what is open in a frame", CHUNKS, 1, 5, offload_chunk(
            0xDEADBEEF, 0x012345, {"transport": TCP, "cwr": True, "segment_size": 1448, "checksum_start": 34,
                                   "checksum_offset": 16}, pattern(40))),
        ("a chunk of a later version is skipped", CHUNKS, 1, 3, chunk(0x70, pattern(5)) + chunk(FRAME_CHUNK, small)),
        ("echo request, padded", CHUNKS, 0, 0, chunk(ECHO_REQUEST, token) + bytes(29)),
        ("echo reply", CHUNKS, 0, 1, chunk(ECHO_REPLY, token)),
        ("close", CHUNKS, 0, 2, chunk(CLOSE, b"")),
        ("nothing but a tag", CHUNKS, 0, 3, b""),
    ):
        yield {"name": name, "cipher": cipher, "type": message_type, "receiver": 0xABCDEF, "lane": lane,
               "sequence": sequence, "plaintext": plaintext.hex(),
               "datagram": seal(split_key, cipher, message_type, 0xABCDEF, lane, sequence, plaintext).hex()}


def packing(split_key, cipher):
    for name, datagram_len, lens in (
        ("alone", 128, [60]),
        ("as large as fits", 128, [100]),
        ("two share a datagram", 160, [60, 60]),
        ("no room for the second", 128, [90, 60]),
        ("cut, and the rest shared", 128, [230, 20]),
        ("a fragment behind a frame", 160, [60, 150]),
        ("too little room behind a frame for a piece", 128, [70, 150]),
        ("padding before a fragment", 128, [20, 40, 150]),
    ):
        frames = [ethernet(length, source) for source, length in enumerate(lens, 1)]
        datagrams = [seal(split_key, cipher, message_type, 0xABCDEF, 1, sequence, plaintext)
                     for sequence, (message_type, plaintext) in enumerate(pack(frames, datagram_len))]
        assert all(len(datagram) <= datagram_len for datagram in datagrams)
        yield {"name": name, "cipher": cipher, "datagram_len": datagram_len, "frames": [f.hex() for f in frames],
               "datagrams": [d.hex() for d in datagrams]}


def reassembly():
    """Per step: a piece, and what comes of it: a frame, null, or the name of the reason to drop it."""
    frame = pattern(10)

    def step(frame_id, total, start, end, result=None):
        return {"frame_id": frame_id, "total": total, "offset": start, "piece": frame[start:end].hex(), "result": result}

    whole = frame.hex()
    return [
        {"name": "in order", "max_frame": 100, "steps": [step(1, 10, 0, 4), step(1, 10, 4, 10, whole)]},
        {"name": "backwards, two frames at a time", "max_frame": 100, "steps": [
            step(1, 10, 7, 10), step(2, 10, 5, 10), step(1, 10, 3, 7), step(2, 10, 0, 5, whole), step(1, 10, 0, 3, whole)]},
        {"name": "an overlap forgets the frame", "max_frame": 100, "steps": [
            step(1, 10, 0, 4), step(1, 10, 3, 6, "malformed"), step(1, 10, 4, 10), step(1, 10, 0, 4, whole)]},
        {"name": "another length forgets the frame", "max_frame": 100, "steps": [
            step(1, 10, 0, 4), step(1, 9, 4, 9, "malformed"), step(1, 10, 4, 10), step(1, 10, 0, 4, whole)]},
        {"name": "empty, behind the end, too large", "max_frame": 9, "steps": [
            step(1, 9, 3, 3, "malformed"), step(1, 8, 6, 10, "malformed"), step(1, 65566, 0, 4, "oversize"),
            step(1, 10, 0, 4), step(1, 10, 4, 10, "oversize")]},
    ]


def offloads(split_key):
    """A frame in which something is open, its datagrams, and what comes out if some of them are lost."""
    for name, stream, datagram_len, fates in (
        ("TCP over IPv4", Stream(TCP, False, False, 100, 930, fin=True, cwr=True), 220, ([], [0], [2, 3], [1, 3, 5])),
        ("TCP over IPv6 with a tag", Stream(TCP, True, True, 128, 512), 300, ([], [1])),
        ("UDP over IPv4", Stream(UDP, False, False, 90, 500), 200, ([], [0], [1])),
        ("UDP over IPv6", Stream(UDP, True, False, 99, 397), 200, ([], [3])),
        ("in one datagram", Stream(TCP, False, False, 100, 250), 500, ([],)),
        ("a checksum", Stream(TCP, False, True, 100, 100), 300, ([],)),
        ("a checksum, cut", Stream(UDP, True, False, 200, 200), 200, ([], [1])),
    ):
        frame, offload = stream.frame(0, stream.segments), stream.offload(0, stream.segments)
        packed = pack([(frame, offload)], datagram_len)
        yield {"name": name, "datagram_len": datagram_len, "frame": frame.hex(), "offload": offload,
               "datagrams": [seal(split_key, 1, message_type, 0xABCDEF, 1, sequence, plaintext).hex()
                             for sequence, (message_type, plaintext) in enumerate(packed)],
               "fates": [{"lost": lost, "frames": list(survivors(stream, packed, lost))} for lost in fates]}


def survivors(stream, packed, lost):
    """The frames for the segments of which all bytes arrived."""
    arrived, described, whole = set(), False, stream.segments == 1
    for sequence, (_, plaintext) in enumerate(packed):
        while sequence not in lost and plaintext and plaintext[0]:
            kind, length = struct.unpack(">BH", plaintext[:3])
            body, plaintext = plaintext[3:3 + length], plaintext[3 + length:]
            if kind == FRAGMENT_CHUNK:
                offset = int.from_bytes(body[7:10], "big")
                arrived |= set(range(offset, offset + len(body) - 10))
            else:
                described = True
    if whole:
        segments = [0] if not lost else []
    else:
        headers = stream.offload(0, stream.segments)["headers_len"]
        segments = [n for n in range(stream.segments) if described and arrived >= set(range(
            headers + n * stream.size, headers + min((n + 1) * stream.size, len(stream.payload))))]
    while segments:
        first = end = segments[0]
        while segments and segments[0] == end:
            segments, end = segments[1:], end + 1
        yield {"frame": stream.frame(first, end).hex(), "offload": stream.offload(first, end)}


def main():
    self_check()
    text = json.dumps(compute(), indent=1) + "\n"
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text)
    elif sys.argv[1:]:
        sys.exit(__doc__)
    elif FILE.read_text() != text:
        sys.exit(f"{FILE} is not what this program computes; see `git diff` after scripts/vectors.py --write")
    else:
        print("the test vectors agree with a second implementation")


main()
