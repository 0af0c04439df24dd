"""Words of 64 bits that look random, made of other words: the same everywhere."""

import hashlib

import torch


def signed(number):
    """Return a whole number modulo 2⁶⁴ as torch has it."""
    return (number + 2**63) % 2**64 - 2**63


# Those of splitmix64.
GOLDEN, MIX_1, MIX_2 = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hash_of_text(text):
    """Return a word, the same in every process."""
    digest = hashlib.blake2b(str(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def mixed(words):
    """Return words of which every bit depends on all bits (the end of splitmix64)."""
    words = (words ^ _shifted(words, 30)) * MIX_1
    words = (words ^ _shifted(words, 27)) * MIX_2
    return words ^ _shifted(words, 31)


def uniform(words):
    """Return the first 53 bits as a number in [0, 1)."""
    return _shifted(words, 11).double() * 2.0**-53


def uniform_at_places(word, shape):
    """Return a tensor of numbers in [0, 1), each made of a word and its own place.

    A smaller one is a part of a larger one.
    """
    words = torch.tensor(word)
    for size in shape:
        words = mixed(words[..., None] + torch.arange(1, size + 1) * GOLDEN)
    return uniform(words)


def _shifted(words, n_bits):
    """Shift to the right and fill up with zeros, where torch repeats the sign."""
    return (words >> n_bits) & (2 ** (64 - n_bits) - 1)
