"""The scheme rotating in Python. Reads rotating.json on stdin, prints its sequences."""
import base64, hashlib, hmac, json, struct, sys, zlib

def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()

def parse_key(text):
    data = base64.b32decode((digits := text.removeprefix("portknock-key-1:").upper()) + "=" * (-len(digits) % 8))
    assert struct.pack(">I", zlib.crc32(data[:-4])) == data[-4:], "mistyped"
    return data[:-4]

def derive(key, host):  # DeriveHostKey: HKDF-SHA256 without salt, one block
    return mac(mac(bytes(32), key), b"portknock/1 host\0" + host.lower().encode() + b"\x01")

def sequence(key, time, period, first, last, knocks):
    size, ports, n = last - first + 1, [], 0
    while True:
        block = mac(key, b"portknock/1 rotating\0" + struct.pack(">QqI", period, time // period, n))
        for (v,) in struct.iter_unpack(">H", block):
            if v < 65536 // size * size and (port := first + v % size) not in ports:
                ports.append(port)
            if len(ports) == knocks:
                return ports
        n += 1

for v in json.load(sys.stdin):
    key = derive(parse_key(v["key"]), v["host"]) if "host" in v else parse_key(v["key"])
    print(" ".join(f"{p}/{v['protocol']}" for p in sequence(key, v["time"], v["period"], v["first"], v["last"], v["knocks"])))
