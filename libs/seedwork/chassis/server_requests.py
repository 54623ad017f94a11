"""What a client sends, cut into heads and bodies by the rules of RFC 9112 alone; anything else is refused.

In: bytes as they arrive. Out: the heads and the bodies of requests, as they were sent, for a parser that may be more
lenient. Guaranteed: two readers cannot disagree about where a request ends, no more than one head under the limit is
kept, and the time grows with the bytes. Chunks stay encoded; trailers are checked and then belong to the body.
Not done here: fields are not interpreted, apart from those that say how long a message is and whom it is for.
"""

import re
from dataclasses import dataclass

HEAD_MAX_BYTES = 64 * 1024
HEADERS_MAX = 100

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_FIELD = _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+\r\n"
_HEAD = re.compile(rb"(%s) ([\x21-\x7e]++) HTTP/1\.([01])\r\n((?:%s)*+)\r\n" % (_TOKEN, _FIELD))
_FIELDS = re.compile(rb"(?:%s)*+" % _FIELD)
_VERSION = re.compile(rb"%s [\x21-\x7e]++ HTTP/[0-9]\.[0-9]\r\n" % _TOKEN)
_LONE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{0,255})(?::[0-9]{0,5})?")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_QUOTED = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*+"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%s(?:[ \t]*+=[ \t]*+(?:%s|%s))?+" % (_TOKEN, _TOKEN, _QUOTED)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})((?:%s)*+)\r\n" % _EXTENSION)
_CHUNK_LINE_MAX_BYTES = 1024
"""Size and extensions of one chunk. The extensions that are in use have some 90 bytes (signatures of S3)."""
_EXTENSIONS_MAX_BYTES = 64 * 1024
"""Extensions of all chunks of one body: they cost time and carry nothing that anybody reads."""

_ONCE = {b"host": "Host", b"content-length": "Content-Length", b"transfer-encoding": "Transfer-Encoding"}

_END_TO_END = frozenset(
    {
        *(b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"content-range"),
        *(b"authorization", b"cookie", b"origin", b"referer", b"expect", b"range", b"cache-control", b"date"),
        *(
            b"forwarded",
            b"x-forwarded-for",
            b"x-forwarded-proto",
            b"x-forwarded-host",
            b"x-forwarded-port",
            b"x-real-ip",
        ),
    }
)
"""Fields that `Connection` must not take away from a recipient behind a proxy (RFC 9110, section 7.6.1)."""


class BadRequest(Exception):
    """A request that is refused, whatever it asks for; its connection is closed.

    Args:
        status: The answer: 400, 405, 413, 414, 431, 501 or 505.
        why: The rule, without anything that the client sent.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass(frozen=True, slots=True)
class Head:
    """A request's line and fields, which keep the rules.

    Attributes:
        raw: All of it, with the empty line.
        host: The `Host` field; None: HTTP/1.0 without one.
        length_bytes: Of the body; None: it comes in chunks.
    """

    raw: bytes
    host: bytes | None
    length_bytes: int | None


class Requests:
    """The requests of one connection, one after the other.

    Args:
        head_max_bytes: Bytes of a request line and its fields together.
        headers_max: Fields of a head.
    """

    __slots__ = ("_buffer", "_chunks", "_head_max_bytes", "_headers_max", "_left_bytes", "_searched")

    def __init__(self, *, head_max_bytes: int = HEAD_MAX_BYTES, headers_max: int = HEADERS_MAX) -> None:
        self._head_max_bytes = head_max_bytes
        self._headers_max = headers_max
        self._buffer = b""
        self._searched = 0
        self._left_bytes = 0
        self._chunks: _Chunks | None = None

    @property
    def complete(self) -> bool:
        """Whether the request was read to its end; also before the first one."""
        return self._chunks is None and not self._left_bytes

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are kept and were not asked for yet."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take what has arrived."""
        self._buffer = self._buffer + data if self._buffer else data

    def head(self) -> Head | None:
        """Return the next request's head once it is whole.

        Raises:
            BadRequest: It breaks a rule, or is larger than allowed.
            RuntimeError: The request before was not read to its end.
        """
        if not self.complete:
            raise RuntimeError("the body before was not read")
        buffer = self._buffer
        if not buffer:
            return None
        if buffer[:2] == b"\r\n":  # RFC 9112, section 2.2: one empty line before a request is ignored
            self._buffer = buffer = buffer[2:]
            if not buffer:
                return None
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        if end < 0 or end + 4 > self._head_max_bytes:
            self._check_beginning(buffer)
            self._searched = len(buffer)
            return None
        self._searched = 0
        raw, self._buffer = (buffer, b"") if end + 4 == len(buffer) else (buffer[: end + 4], buffer[end + 4 :])
        head = read_head(raw, self._headers_max)
        if head.length_bytes is None:
            self._chunks = _Chunks()
        else:
            self._left_bytes = head.length_bytes
        return head

    def body(self) -> bytes:
        """Return what is there of the body of the request whose head was read; chunks stay as they were sent.

        Raises:
            BadRequest: Its chunks break a rule.
        """
        buffer = self._buffer
        if self._chunks is not None:
            taken, ended = self._chunks.check(buffer)
            if ended:
                self._chunks = None
        else:
            taken = min(self._left_bytes, len(buffer))
            self._left_bytes -= taken
        if taken == len(buffer):
            self._buffer = b""
            return buffer
        self._buffer = buffer[taken:]
        return buffer[:taken]

    def rest(self) -> bytes:
        """Return and forget what was not asked for: the first bytes after an upgrade."""
        rest, self._buffer = self._buffer, b""
        return rest

    def _check_beginning(self, buffer: bytes) -> None:
        """Refuse as early as possible what cannot become a head any more."""
        if buffer[0] < 0x21 and buffer != b"\r":
            raise BadRequest(400, "what was sent is no HTTP request")
        line_end = buffer.find(b"\r\n")
        if len(buffer) >= self._head_max_bytes:
            if line_end < 0 or line_end > self._head_max_bytes:
                raise BadRequest(414, f"its first line has more than {self._head_max_bytes // 1024} KiB")
            raise BadRequest(
                431, f"its header fields have more than {self._head_max_bytes // 1024} KiB; send smaller cookies"
            )
        if _LONE_LINE_END.search(buffer, max(0, self._searched - 1)):
            raise BadRequest(400, "a line does not end with CR and LF")
        if line_end >= 0 and not _VERSION.match(buffer):
            raise BadRequest(400, "the request line is wrong")


def read_head(raw: bytes, headers_max: int = HEADERS_MAX) -> Head:
    """Check a whole head, from its first byte to its empty line.

    Raises:
        BadRequest: It breaks a rule of RFC 9112, or has too many fields.
    """
    match = _HEAD.fullmatch(raw)
    if match is None:
        raise _what_is_wrong(raw)
    method, target, minor, block = match.groups()
    _check_target(method, target)
    lines = block.split(b"\r\n")
    if len(lines) - 1 > headers_max:
        raise BadRequest(431, f"there are more than {headers_max} header fields")
    found: dict[bytes, bytes] = {}
    for line in lines[:-1]:
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _ONCE:
            if name in found:
                raise BadRequest(400, f"there is more than one {_ONCE[name]}")
            found[name] = value.strip(b" \t")
        elif name == b"connection" and not _END_TO_END.isdisjoint(tokens(value)):
            raise BadRequest(400, "Connection names a field that is meant for all recipients")
    host = found.get(b"host")
    if not _HOST.fullmatch(host or b"") or (host is None and minor == b"1"):
        raise BadRequest(400, "the Host is missing or wrong")
    return Head(raw, host, _length_of_body(minor, found.get(b"content-length"), found.get(b"transfer-encoding")))


def tokens(value: bytes) -> set[bytes]:
    """Return the members of a comma-separated field, in lower case."""
    return {token for each in value.split(b",") if (token := each.strip(b" \t").lower())}


def _check_target(method: bytes, target: bytes) -> None:
    if method == b"CONNECT":
        raise BadRequest(405, "CONNECT is for proxies, and this is none")
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise BadRequest(400, "the target does not begin with a slash; this is no proxy")
    if b"#" in target:
        raise BadRequest(400, "the target has a fragment")


def _length_of_body(minor: bytes, length: bytes | None, coding: bytes | None) -> int | None:
    """RFC 9112, section 6.3."""
    if coding is None:
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length):
            raise BadRequest(400, "the Content-Length is no number, or too large")
        return int(length)
    if length is not None:
        raise BadRequest(400, "there are both Content-Length and Transfer-Encoding")
    if minor == b"0":
        raise BadRequest(400, "HTTP/1.0 has no Transfer-Encoding")
    codings = [each.strip(b" \t").lower() for each in coding.split(b",")]
    if codings == [b"chunked"]:
        return None
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1]:
        raise BadRequest(400 if b"chunked" in codings else 501, "the Transfer-Encoding is not `chunked`")
    raise BadRequest(501, "the only Transfer-Encoding that is known here is `chunked`")


def _what_is_wrong(raw: bytes) -> BadRequest:
    if _LONE_LINE_END.search(raw):
        return BadRequest(400, "a line does not end with CR and LF")
    if not _VERSION.match(raw):
        return BadRequest(400, "the request line is wrong")
    line, _, fields = raw.partition(b"\r\n")
    if not line.endswith((b"HTTP/1.1", b"HTTP/1.0")):
        return BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    wrong = _FIELDS.match(fields)
    at = fields[wrong.end() if wrong else 0 :][:1]
    if at in {b" ", b"\t"}:
        return BadRequest(400, "a header field is folded over lines, or begins with a space")
    return BadRequest(400, "a header field has a character that is not allowed, or a space before its colon")


class _Chunks:
    """The chunks of one body: sizes, extensions, line ends and trailers, checked as they pass."""

    __slots__ = ("_data_bytes", "_extension_bytes", "_line", "_trailers")

    def __init__(self) -> None:
        self._line = b""
        """Of a line that has not ended yet."""
        self._data_bytes = 0
        """Bytes to come of the chunk, with its line end."""
        self._extension_bytes = 0
        self._trailers: int | None = None
        """Bytes of trailers seen; None: they have not begun."""

    def check(self, data: bytes) -> tuple[int, bool]:
        """Return how many of the bytes belong to this body, and whether it has ended.

        Raises:
            BadRequest: A chunk breaks a rule.
        """
        at = 0
        while at < len(data):
            if self._data_bytes > 2:
                passed = min(self._data_bytes - 2, len(data) - at)
                self._data_bytes -= passed
                at += passed
                continue
            if self._data_bytes:  # the line end after a chunk
                if data[at] != b"\r\n"[2 - self._data_bytes]:
                    raise BadRequest(400, "a chunk is longer than its size says")
                self._data_bytes -= 1
                at += 1
                continue
            end = data.find(b"\n", at)
            line = self._line + (data[at:] if end < 0 else data[at : end + 1])
            if len(line) > (_CHUNK_LINE_MAX_BYTES if self._trailers is None else HEAD_MAX_BYTES):
                raise BadRequest(400, "a chunk's size line or a trailer is too long")
            if end < 0:
                self._line = line
                return len(data), False
            self._line = b""
            at = end + 1
            if self._ends_with(line):
                return at, True
        return at, False

    def _ends_with(self, line: bytes) -> bool:
        if self._trailers is not None:
            self._trailers += len(line)
            if self._trailers > HEAD_MAX_BYTES:
                raise BadRequest(431, "the trailers are too long")
            if line == b"\r\n":
                return True
            if not _FIELDS.fullmatch(line) or line.partition(b":")[0].lower() in _ONCE:
                raise BadRequest(400, "a trailer is wrong")
            return False
        match = _CHUNK.fullmatch(line)
        if match is None:
            raise BadRequest(400, "a chunk's size or extension is wrong")
        self._extension_bytes += len(match[2])
        if self._extension_bytes > _EXTENSIONS_MAX_BYTES:
            raise BadRequest(400, "there are too many chunk extensions")
        size = int(match[1], 16)
        if size:
            self._data_bytes = size + 2
        else:
            self._trailers = 0
        return False
