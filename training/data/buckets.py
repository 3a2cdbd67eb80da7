"""Aspect-ratio buckets: sizes of about one area for photos of different shapes."""

from collections.abc import Sequence

Size = tuple[int, int]
"""Width and height in pixels."""
STEP = 64
"""Sides of buckets are multiples of it."""
LONGEST = 3072
"""Longest side of a bucket in pixels, unless the resolution is larger: Stable Diffusion 3.5 large has no further
positions."""


def bucket_sizes(resolution: int) -> list[Size]:
    """Return the sizes of all buckets, of at most ``resolution²`` pixels each.

    The rule is that of ``make_bucket_resolutions`` in kohya-ss/sd-scripts 48d368f, library/model_util.py: for every
    width in steps of 64 the largest height, and both orientations. Sides are half to twice the resolution, which are
    the 256 and 1024 of its defaults at 512 pixels, and not above ``LONGEST``.
    """
    area, square = resolution**2, resolution // STEP * STEP or resolution
    shortest = max(STEP, resolution // 2 // STEP * STEP)
    longest = min(2 * resolution, max(resolution, LONGEST)) // STEP * STEP
    sizes = {(square, square)}
    for width in range(shortest, longest + 1, STEP):
        height = min(longest, area // width // STEP * STEP)
        if height >= shortest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(size: Size, resolution: int) -> Size:
    """Return the bucket that crops the least of a photo of this size.

    (sd-scripts minimises the difference of width / height, which treats portraits and landscapes differently.)
    """
    aspect = size[0] / size[1]

    def kept(bucket: Size) -> float:
        return min(aspect * bucket[1] / bucket[0], bucket[0] / bucket[1] / aspect)

    return max(bucket_sizes(resolution), key=kept)


def grouped(sizes: Sequence[Size]) -> list[list[int]]:
    """Return the indices of equal sizes together, one list per size, in the order of the sizes."""
    return [[index for index, size in enumerate(sizes) if size == bucket] for bucket in sorted(set(sizes))]
