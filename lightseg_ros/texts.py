# Copyright 2026 The lightseg_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Texts from outside as one short line that every log, message and terminal takes."""
import os


def one_line(text: object, limit: int = 1000) -> str:
    r"""
    Return a text as one printable line of at most `limit` characters; what is longer loses its middle.

    Line breaks become spaces. Control characters, which could steer a terminal, and lone surrogates, which
    no ROS message can carry, become escapes such as '\x1b' and '\ud800'.
    """
    line = str(text)
    if len(line) > limit:
        line = f'{line[:limit // 2]} [{len(line)} characters in all] {line[-limit // 4:]}'
    line = ' '.join(line.split())
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def error_line(error: BaseException) -> str:
    """
    Return an error as one line.

    The text of this package's errors (ValueErrors) and of the system's (OSErrors) says all that a user needs.
    Any other is a bug or a library's: its type and its place in the code are added, for a report.
    """
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return one_line(f'{error.filename}: {error.strerror}')  # without its number
    if isinstance(error, (ValueError, OSError)):
        return one_line(error) or type(error).__name__
    place, trace = '', error.__traceback__
    while trace is not None:
        place = f' in {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}'
        trace = trace.tb_next
    return f'{one_line(error)} [{type(error).__name__}{place}]'.lstrip()
