"""The bytes that are sent: version, quantizer spec, body and checksum; see docs/payload.md."""

import struct
import zlib
from dataclasses import dataclass

from fl_sim.updates.local_update import Layout

READABLE = (1, 2)
"""Versions of the format: 2 is that of quantizers with a rotation, 1 that of all others."""
MAX_SPEC = 255
_CHECKSUM = struct.Struct("<I")


class PayloadError(ValueError):
    """A payload that is truncated, padded, altered, or of another model than expected."""


@dataclass(frozen=True)
class Payload:
    """An encoded update.

    On the wire: one byte version, one byte length of the spec, the spec in ASCII, the body, and
    a CRC-32 over all of it, started from the layout's fingerprint. The layout itself is public
    (the server knows its model) and not sent, so no length on the wire needs to be trusted.

    Attributes
    ----------
    spec : str
        Spec string of the quantizer, e.g. ``uniform:bits=4``.
    body : bytes
        Side information and packed codes.
    layout : Layout
        Layout of the update that was encoded.
    version : int
        Version of the format, one of `READABLE`.
    """

    spec: str
    body: bytes
    layout: Layout
    version: int = 1

    def to_bytes(self) -> bytes:
        """Return the exact bytes that are sent."""
        spec = self.spec.encode("ascii")
        head = bytes((self.version, len(spec))) + spec
        return head + self.body + _CHECKSUM.pack(_checksum(head + self.body, self.layout))

    @classmethod
    def from_bytes(cls, data: bytes, layout: Layout) -> "Payload":
        """Parse what ``to_bytes`` returned.

        Raises
        ------
        PayloadError
            If a byte was lost, added or altered, or the layout is another model's.
        """
        if len(data) < 2 + _CHECKSUM.size:
            raise PayloadError(f"A payload of {len(data)} bytes is too short for its header.")
        if data[0] not in READABLE:
            readable = " and ".join(str(version) for version in READABLE)
            raise PayloadError(
                f"The payload has format version {data[0]}; this code reads {readable}."
            )
        content, checksum = data[: -_CHECKSUM.size], data[-_CHECKSUM.size :]
        if _CHECKSUM.unpack(checksum)[0] != _checksum(content, layout):
            raise PayloadError("The payload's checksum does not match its bytes and the model.")
        end = 2 + data[1]
        if end > len(content):
            raise PayloadError("The payload ends inside its spec.")
        try:
            spec = content[2:end].decode("ascii")
        except UnicodeDecodeError as error:
            raise PayloadError("The payload's spec is not ASCII.") from error
        return cls(spec, content[end:], layout, data[0])

    @property
    def nbytes(self) -> int:
        """Size in bytes: ``len(self.to_bytes())``, without making them."""
        return 2 + len(self.spec) + len(self.body) + _CHECKSUM.size


def _checksum(content: bytes, layout: Layout) -> int:
    return zlib.crc32(content, layout.fingerprint)
