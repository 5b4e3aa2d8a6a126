# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parses image sizes as people write them: 'WIDTHxHEIGHT' in pixels."""
import argparse
import re

SMALLEST, LARGEST = 64, 8192


class SizeError(ValueError):
    """A text that is not a size, or a size out of range; the message says what is expected."""


def parse_size(text: str) -> tuple[int, int]:
    """
    Parse 'WIDTHxHEIGHT' to (width, height).

    Both are whole numbers from 64, the networks' smallest input, to 8192. `SizeError` says what was found and
    what is expected.
    """
    match = re.fullmatch(r'([0-9]{1,9})[xX]([0-9]{1,9})', text.strip())
    if not match or not all(SMALLEST <= int(v) <= LARGEST for v in match.groups()):
        raise SizeError(f'size is {text!r}; expected WIDTHxHEIGHT in pixels, each {SMALLEST} to {LARGEST}, '
                        "for example '1024x512'")
    return int(match[1]), int(match[2])


def argument(text: str) -> tuple[int, int]:
    """Parse a size as a `type` of argparse, which would replace the message of any other error by its own."""
    try:
        return parse_size(text)
    except SizeError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
