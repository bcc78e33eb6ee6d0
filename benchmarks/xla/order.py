"""Which images each batch of a training consists of, and which of banks, with NumPy alone.

TensorFlow's ``index_shuffle`` has no form for XLA, and the order of 94,000 batches as an array is
24 MB or more. An epoch's order follows from two integers, so a machine without TensorFlow is given
these and works it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FIRST_WORD = 498247692  # of the key, by which TensorFlow fills up one of two integers


def permutation(key: Sequence[int], size: int) -> np.ndarray:
    """Return the image at each place of an epoch, as ``tf.random.experimental.index_shuffle``.

    That is a block cipher, four rounds of Simon, applied to a place until the result is below
    ``size``. The cipher's words have half the bits that the places need, and eight at least.

    Args:
        key: two integers.
        size: the number of images, 2 or above.

    Returns:
        int64 (size,).
    """
    word = max(-(-int(size - 2).bit_length() // 2), 8)
    mask = (1 << word) - 1

    def rotated(value, left: int):
        return ((value << left) | (value >> (word - left))) & mask

    def mixed(value):
        return (rotated(value, 1) & rotated(value, 8 % word)) ^ rotated(value, 2)

    keys = [int(part) & mask for part in (_FIRST_WORD, *key)]
    # A fourth one from these: Simon's schedule, whose constant is ...11100, with a sequence of bits
    # that begins with 1.
    keys.append(mask ^ 3 ^ 1 ^ keys[0] ^ rotated(keys[2], word - 3) ^ rotated(keys[2], word - 4))
    every = np.arange(1 << (2 * word), dtype=np.int64)
    left, right = every >> word, every & mask
    for first, second in (keys[:2], keys[2:]):
        left = left ^ mixed(right) ^ first
        right = right ^ mixed(left) ^ second
    encrypted = (left << word) | right
    order = encrypted[:size]
    while (outside := order >= size).any():
        order = np.where(outside, encrypted[order], order)
    return order


class Order:
    """The batches of a training one after the other, epochs joined as ``data.batches`` does.

    Args:
        keys: of each epoch, ``draws.order_key``.
        trained: the images that are trained on, ascending: all of them, or all but those held out.
        batch_size: images a batch, at most as many as these.
    """

    def __init__(self, keys: Sequence[Sequence[int]], trained: np.ndarray, batch_size: int):
        self.keys, self.trained, self.batch_size = keys, trained, batch_size
        self.size = len(trained)
        self._epoch, self._places = -1, np.empty(0, np.int64)

    def __call__(self, first: int, count: int) -> np.ndarray:
        """Return the images of ``count`` batches from one on, int32 (count, batch_size)."""
        start, stop = first * self.batch_size, (first + count) * self.batch_size
        parts = []
        for epoch in range(start // self.size, -(-stop // self.size)):
            if epoch != self._epoch:
                self._epoch, self._places = epoch, permutation(self.keys[epoch], self.size)
            begin = epoch * self.size
            parts.append(self._places[max(start - begin, 0) : stop - begin])
        order = self.trained[np.concatenate(parts)]
        return order.astype(np.int32).reshape(count, self.batch_size)


class Partners:
    """Which images of banks the batches of a training bring along.

    A bank has the images of the first epsilon one after the other, then those of the next.

    Args:
        source, epsilon: (steps, c), of which bank each partner is and its epsilon, 1 or above.
        first_place: the place in a batch of the first image that has one.
        examples: the images that each bank has at every epsilon.
        trained: the images that are trained on, ascending.
    """

    def __init__(
        self,
        source: np.ndarray,
        epsilon: np.ndarray,
        first_place: int,
        examples: int,
        trained: np.ndarray,
    ):
        self.source, self.epsilon, self.examples = source, epsilon, examples
        self.trained = trained
        self.places = slice(first_place, first_place + source.shape[1])

    def __call__(self, first: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the images of the batches from one on, and bank and place there of each partner.

        Args:
            first: the step of the first batch.
            order: of ``Order``, (count, batch_size).

        Returns:
            int32 (count, batch_size), (count, c) and (count, c). Where the banks have fewer images
            than the dataset, those that have partners are others than those of the order.
        """
        order, steps = order.copy(), slice(first, first + len(order))
        number = np.searchsorted(self.trained, order[:, self.places])
        brought = np.searchsorted(self.trained, self.examples)  # so many of the first have one
        order[:, self.places] = self.trained[number % brought]
        level = self.epsilon[steps].astype(np.int32) - 1
        place = level * self.examples + order[:, self.places]
        return order, self.source[steps].astype(np.int32), place.astype(np.int32)


def centres(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the centre of each image, (N, H, W, C), as ``data.centre_crop``."""
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]
