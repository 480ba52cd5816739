"""The ``gradstack`` command: train, use and look at models without writing Python."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from gradstack.cli._errors import InputError

__all__ = ["main"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default the process's own.

    Returns
    -------
    int
        0 done; 1 training failed (the loss became NaN or infinite); 2 wrong usage or input that
        cannot be used, with one line on stderr saying why; 130 stopped by Ctrl-C.
    """
    from gradstack.cli._arguments import build_parser

    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed its line (or the help)
        return stop.code if isinstance(stop.code, int) else EXIT_BAD_INPUT
    try:
        result = arguments.run(arguments)
        if arguments.json:
            print(json.dumps(_finite(result), allow_nan=False))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("gradstack: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except FloatingPointError as error:
        return _fail(error, EXIT_FAILED)
    except BrokenPipeError:
        # Whoever read the output has gone; keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (InputError, ValueError, OSError, ImportError, MemoryError) as error:
        return _fail(error, EXIT_BAD_INPUT)
    return EXIT_OK


def _fail(error: BaseException, code: int) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"gradstack: error: {message}", file=sys.stderr)
    return code


def _finite(value: object) -> object:
    """Replace what JSON cannot say (NaN, infinities) by null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
