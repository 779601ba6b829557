"""Bytes of a payload behind an entropy coder: what its codes are worth, not what they occupy."""

import zstandard

from fl_sim.quantizers import parse_quantizer
from fl_sim.quantizers.payload import Payload

_LEVEL = 19  # zstandard's best that needs no special memory


def entropy_coded_bytes(payload: Payload) -> int:
    """Return the bytes of a payload whose body is compressed with Zstandard.

    The coder reads the codes unpacked to whole bytes, which shows it their distribution. Where
    that saves nothing the body would travel as it is, so the size is never above the payload's.
    """
    quantizer = parse_quantizer(payload.spec)
    body = len(zstandard.compress(quantizer.symbols(payload), _LEVEL))
    return payload.nbytes - max(0, len(payload.body) - body)
