"""Session files of openssl's s_client, changed: a client that sends early data though the ticket forbids it."""

import base64

# SSL_SESSION's fields `max_early_data` [15] and `alpn_selected` [16], explicit tags, of openssl's ssl/ssl_asn1.c.
MAX_EARLY_DATA, ALPN = 0xAF, 0xB0


def _length(data, at):
    """Length of a DER value and where it begins."""
    first = data[at]
    if first < 0x80:
        return first, at + 1
    end = at + 1 + (first & 0x7F)
    return int.from_bytes(data[at + 1 : end], "big"), end


def with_early_data(path, allowed=16_384):
    """Changes the session in the file as if its ticket allowed so many bytes of early data."""
    with open(path) as f:
        der = base64.b64decode("".join(line for line in f.read().splitlines() if "-----" not in line))
    length, at = _length(der, 1)
    end, fields = at + length, []
    while at < end:
        size, start = _length(der, at + 1)
        fields.append((der[at], der[at : start + size]))
        at = start + size
    value = allowed.to_bytes(4, "big").lstrip(b"\0")
    value = b"\0" + value if value[0] & 0x80 else value
    inner = bytes([2, len(value)]) + value
    fields = [field for field in fields if field[0] != MAX_EARLY_DATA]
    place = next((n for n, (tag, _) in enumerate(fields) if tag >= ALPN), len(fields))
    fields.insert(place, (MAX_EARLY_DATA, bytes([MAX_EARLY_DATA, len(inner)]) + inner))
    body = b"".join(field for _, field in fields)
    text = base64.encodebytes(b"\x30\x82" + len(body).to_bytes(2, "big") + body).decode()
    with open(path, "w") as f:
        f.write(f"-----BEGIN SSL SESSION PARAMETERS-----\n{text}-----END SSL SESSION PARAMETERS-----\n")
