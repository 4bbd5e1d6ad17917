"""The schemes rotating and token in Python, and which token a client sends. Reads vectors on stdin, prints the results."""
import base64, hashlib, hmac, ipaddress, json, struct, sys, zlib

def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()

def parse_key(text):
    data = base64.b32decode((digits := text.removeprefix("portknock-key-1:").upper()) + "=" * (-len(digits) % 8))
    assert struct.pack(">I", zlib.crc32(data[:-4])) == data[-4:], "mistyped"
    return data[:-4]

def derive(key, host):  # DeriveHostKey: HKDF-SHA256 without salt, one block
    return mac(mac(bytes(32), key), b"portknock/1 host\0" + host.lower().encode() + b"\x01")

def block(scheme, key, time, period, n):
    return mac(key, b"portknock/1 " + scheme + b"\0" + struct.pack(">QqI", period, time // period, n))

def rotating(key, time, period, first, last, knocks, protocol):
    size, ports, n = last - first + 1, [], 0
    while len(ports) < knocks:
        for (v,) in struct.iter_unpack(">H", block(b"rotating", key, time, period, n)):
            ports += [p for p in [first + v % size] if v < 65536 // size * size and p not in ports]
        n += 1
    return " ".join(f"{port}/{protocol}" for port in ports[:knocks])

def share(tokens, to, targets):  # the numbers of the tokens that the server's address to may get; targets are all its addresses
    ip, all = ipaddress.ip_address(to), [ipaddress.ip_address(target) for target in targets]
    family = sorted(t for t in all if t.version == ip.version)
    numbers = [n for n in range(tokens) if n % 2 == (ip.version == 6)]
    if len(family) == len(all):
        numbers += [n for n in range(tokens) if n not in numbers]
    return numbers[family.index(ip)::len(family)]

def pick(address, tokens, since, skew, round, to=None, targets=None):  # the window, 0 or the previous one, and the token's number, or -1
    window, turn = (-(round % 2), round // 2) if since < skew else (0, round)
    ip = ipaddress.ip_address(address)
    numbers = share(tokens, to, targets) if targets else range(tokens)
    if not numbers:
        return window, -1
    own = [n for n in numbers if n % 2 == (ip.version == 6)]
    others = [n for n in numbers if n not in own]
    begin, turn = int.from_bytes(hashlib.sha256(ip.packed).digest()[:2], "big"), turn % len(numbers)
    if turn < len(own):
        return window, own[(begin + turn) % len(own)]
    return window, others[(begin + turn - len(own)) % len(others)]

for v in json.load(sys.stdin):
    if "address" in v:
        print(*pick(*(v.get(k) for k in ("address", "tokens", "since", "skew", "round", "to", "targets"))))
        continue
    text, host, n, *_ = (v.pop(k, None) for k in ("key", "host", "n", "about", "sequence", "token"))
    key = derive(parse_key(text), host) if host else parse_key(text)
    print(rotating(key, **v) if n is None else block(b"token", key, **v, n=n)[:16].hex())
