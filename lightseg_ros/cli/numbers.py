# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""For argparse: types (numbers within limits, JSON objects) that say what is expected; help texts."""
import argparse
from collections.abc import Callable
import json
from typing import Any

from ..texts import one_line


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each argument that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default in ('', [], {})
        return action.help if nothing else super()._get_help_string(action)


def whole(low: int, high: int = 10 ** 6) -> Callable[[str], int]:
    """Return a type for whole numbers from `low` to `high`."""
    def parse(text: str) -> int:
        if len(text) < 20:
            try:
                if low <= (value := int(text)) <= high:
                    return value
            except ValueError:
                pass
        raise argparse.ArgumentTypeError(f'{one_line(text, 40)!r}; expected a whole number from {low} to '
                                         f'{high}')
    return parse


def real(low: float, high: float = 1e6) -> Callable[[str], float]:
    """Return a type for numbers from `low` to `high`; neither nan nor infinity is among them."""
    def parse(text: str) -> float:
        try:
            if low <= (value := float(text)) <= high:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f'{one_line(text, 40)!r}; expected a number from {low:g} to '
                                         f'{high:g}')
    return parse


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object, such as '{"dropout": 0.1}'."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise argparse.ArgumentTypeError(f'{one_line(text, 80)!r} is not JSON: {e}') from e
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{one_line(text, 80)!r}; expected a JSON object, such as '
                                         '\'{"dropout": 0.1}\'')
    return value
