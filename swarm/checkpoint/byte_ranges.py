"""Byte ranges of a file, `[start, end)`, sorted and apart; pure."""

from collections.abc import Iterable

ByteRange = tuple[int, int]
ByteRanges = tuple[ByteRange, ...]

NOTHING: ByteRanges = ()


def merged(ranges: Iterable[ByteRange], *, bridge: float = 0.0) -> ByteRanges:
    """The same bytes as few ranges; gaps of up to `bridge` x the bytes before them are filled."""
    found: list[ByteRange] = []
    for start, end in sorted(each for each in ranges if each[0] < each[1]):
        if found and start - found[-1][1] <= (found[-1][1] - found[-1][0]) * bridge:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def without(ranges: ByteRanges, taken: ByteRanges) -> ByteRanges:
    """The bytes of `ranges` that are not in `taken`."""
    left: list[ByteRange] = []
    for start, end in ranges:
        for low, high in taken:
            if high <= start or low >= end:
                continue
            if low > start:
                left.append((start, low))
            start = high
        if start < end:
            left.append((start, end))
    return tuple(left)


def size_of(ranges: Iterable[ByteRange]) -> int:
    """How many bytes the ranges have in all."""
    return sum(end - start for start, end in ranges)


def split(ranges: Iterable[ByteRange], size: int) -> ByteRanges:
    """The same bytes in ranges of at most `size` bytes."""
    return tuple(
        (start, min(start + size, high)) for low, high in ranges for start in range(low, high, size)
    )


def aligned(ranges: ByteRanges, step: int, size: int) -> ByteRanges:
    """Whole chunks of `step` bytes around the ranges, in a file of `size` bytes."""
    return merged((low // step * step, min(-(-high // step) * step, size)) for low, high in ranges)
