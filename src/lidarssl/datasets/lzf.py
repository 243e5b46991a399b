"""Decoder of the LZF compression that binary_compressed PCD files use."""

from __future__ import annotations


def decompress(data: bytes, size: int) -> bytes:
    """Expand an LZF stream.

    A control byte below 32 announces that many + 1 literal bytes. Otherwise its upper 3 bits are
    a length (7 = another byte follows) and its lower 5 bits with the next byte a distance back.

    Args:
        data: the stream.
        size: bytes it must expand to.

    Raises:
        ValueError: truncated, refers to bytes before the start, or of another size.
    """
    output = bytearray()
    position, end = 0, len(data)
    while position < end:
        control = data[position]
        position += 1
        if control < 32:
            stop = position + control + 1
            if stop > end:
                raise ValueError("the stream ends inside a literal")
            output += data[position:stop]
            position = stop
        else:
            length = control >> 5
            extended = length == 7
            if position + extended >= end:
                raise ValueError("the stream ends inside a reference")
            if extended:
                length += data[position]
                position += 1
            distance = ((control & 31) << 8) + data[position] + 1
            position += 1
            _copy_back(output, distance, length + 2)
        if len(output) > size:
            raise ValueError(f"expands to more than the announced {size} bytes")
    if len(output) != size:
        raise ValueError(f"expands to {len(output)} bytes, not the announced {size}")
    return bytes(output)


def _copy_back(output: bytearray, distance: int, length: int) -> None:
    start = len(output) - distance
    if start < 0:
        raise ValueError("refers to bytes before the start")
    if distance >= length:
        output += output[start : start + length]
    else:
        # The copy overlaps itself: the pattern of `distance` bytes repeats.
        pattern = output[start:]
        output += (pattern * (length // distance + 1))[:length]
