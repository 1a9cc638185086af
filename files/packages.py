"""Packages that only an extra of the project brings: one that is missing is told from one that is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needed(*packages: str, extra: str, by: str) -> Iterator[None]:
    """Say in one sentence why an import fails.

    Args:
        packages: What is imported, by the names that Python imports.
        extra: The extra of the project that brings them.
        by: What needs them, for the message.

    Raises:
        ValueError: One is not installed, or is but cannot be imported.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in packages:
            raise ValueError(f"{by} needs {error.name}: pip install 'triptych[{extra}]'.") from error
        raise _broken(packages, extra, by, error) from error
    except Exception as error:  # whatever a package does when it is imported
        raise _broken(packages, extra, by, error) from error


def _broken(packages: tuple[str, ...], extra: str, by: str, error: Exception) -> ValueError:
    said = f"{type(error).__name__}: {error}".rstrip(".")
    return ValueError(
        f"{by} needs {' and '.join(packages)}, installed here but broken ({said}): install again with pip install "
        f"--force-reinstall 'triptych[{extra}]'."
    )
