"""Whatever a damaged file makes a decoder do, the caller sees an ``ImageError`` that names the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Concatenate, ParamSpec

from groundglass.errors import GroundglassError, ImageError
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import Source

_Arguments = ParamSpec("_Arguments")
_Reader = Callable[Concatenate[Source, _Arguments], Iterator[CTSlice]]

_ONE_AT_A_TIME = Lock()


@contextmanager
def guard(name: str, container: str) -> Iterator[None]:
    """Turn every exception of the block into ``ImageError`` and keep the decoders' warnings off stderr.

    Args:
        name: the file, as messages should call it.
        container: what the file is taken for, such as ``PNG``.

    Raises:
        ImageError: where the block raised anything that is not a ``GroundglassError``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except GroundglassError:
        raise
    except MemoryError as error:
        raise ImageError(name, f"too large to be read as {container} in the memory there is") from error
    except OSError as error:
        reason = error.strerror or one_line(str(error))
        raise ImageError(name, f"cannot be read as {container}: {reason}") from error
    except Exception as error:
        raise ImageError(
            name, f"damaged or not valid {container}: {one_line(str(error) or type(error).__name__)}"
        ) from error


@contextmanager
def without_stderr() -> Iterator[None]:
    """Send what C libraries print to file descriptor 2 to nowhere. One thread at a time; others wait."""
    with _ONE_AT_A_TIME:
        nowhere, stderr = os.open(os.devnull, os.O_WRONLY), os.dup(2)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.close(nowhere)


def guarded(container: str) -> Callable[[_Reader[_Arguments]], _Reader[_Arguments]]:
    """Guard a generator function that reads slices from a ``Source``, its first argument.

    Each step is guarded by itself, so that nothing is silenced while the caller works on a slice.
    """

    def decorate(reader: _Reader[_Arguments]) -> _Reader[_Arguments]:
        @wraps(reader)
        def read(
            source: Source, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
        ) -> Generator[CTSlice, None, None]:
            slices = reader(source, *args, **kwargs)
            while True:
                with guard(source.name, container):
                    following = next(slices, None)
                if following is None:
                    return
                yield following

        return read

    return decorate


def one_line(text: str, longest: int = 160) -> str:
    """Text from a file or decoder, fit for a message: printable, on one line, cut where it is too long."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"
