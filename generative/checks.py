"""Checks arguments against their annotations: an option or a range is written once, as a ``Literal`` or ``generative.ranges``.

``launch.checking`` checks a whole config so before anything is built; a class marked ``checked`` does whenever one is built.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

Class = TypeVar("Class", bound=type)
Check = Callable[[Any], str | None]
_CHECKED: set[Callable[..., None]] = set()  # constructors of the classes that are marked
WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
    "missing": "longer",
}


def checked(key: str) -> Callable[[Class], Class]:
    """Make a class check its arguments whenever one is built: those that are annotated with a range or with options.

    Args:
        key: Config key of the object, which messages name: ``sampler`` for ``sampler.num_steps=0 must be ...``. The
            ``ValueError`` is raised before the class's own ``__init__`` runs.
    """

    def wrapped(owner: Class) -> Class:
        own_init = owner.__init__  # type: ignore[misc]
        signature = inspect.signature(own_init)

        @functools.cache  # on first use: annotations may name what the module defines later
        def checks() -> dict[str, Check]:
            return checks_of({name: hint for name, hint in hints_of(owner).items() if restricts(hint)})

        @functools.wraps(own_init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            given = {**signature.bind(self, *args, **kwargs).arguments, **kwargs}
            for name, check in checks().items():
                if name in given and (reason := check(given[name])):
                    raise ValueError(f"{key}.{name}={given[name]} {reason}")
            own_init(self, *args, **kwargs)

        owner.__init__ = __init__  # type: ignore[misc]
        _CHECKED.add(__init__)
        return owner

    return wrapped


def checks_of(hints: Mapping[str, Any]) -> dict[str, Check]:
    """Return what checks plain values against annotations.

    Types are not converted: ``2.0`` is no whole number, ``true`` no number, and no number may be nan or infinite.

    Args:
        hints: Annotations by argument.

    Returns:
        By argument, a function that says what a value must be, or None where it fits or is no plain value. Annotations that
        no plain value could be checked against are left out.
    """
    settings = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    checks: dict[str, Check] = {}
    for name, hint in hints.items():
        with suppress(PydanticUserError, SchemaError):
            nullable = type(None) in typing.get_args(hint)
            checks[name] = functools.partial(_reason, TypeAdapter(hint, config=settings), nullable)
    return checks


def hints_of(target: Any) -> dict[str, Any]:
    """Return the annotations of the arguments of a function or class; those that it hands on to a base by ``**`` too."""
    if dataclasses.is_dataclass(target) or not inspect.isclass(target):
        found = typing.get_type_hints(target, include_extras=True)
        if not dataclasses.is_dataclass(target):
            return found
        return {field.name: found[field.name] for field in dataclasses.fields(target) if field.init}
    hints: dict[str, Any] = {}
    for owner in target.__mro__:
        function = vars(owner).get("__init__")
        if function is None:
            continue
        hints = _resolved(function, owner) | hints
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            break
    return hints


def _resolved(function: Any, owner: type) -> dict[str, Any]:
    """Resolve the annotations of a constructor; those that name what its module does not have are left out of others' classes.

    Some libraries name types that they import for type checkers only. A class that is marked ``checked`` would lose its checks.
    """
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        if function in _CHECKED:
            raise NameError(
                f"an annotation of {owner.__module__}.{owner.__qualname__} names {error.name}, which is not known when it is "
                "checked: correct the name, or import it outside of TYPE_CHECKING"
            ) from error
    hints: dict[str, Any] = {}
    for name, hint in function.__annotations__.items():
        with suppress(NameError):
            alone = types.SimpleNamespace(__annotations__={name: hint})
            hints |= typing.get_type_hints(alone, inspect.unwrap(function).__globals__, include_extras=True)
    return hints


def restricts(hint: Any) -> bool:
    """Say whether an annotation has a range or options."""
    return typing.get_origin(hint) in (Annotated, Literal) or any(map(restricts, typing.get_args(hint)))


def _reason(kind: TypeAdapter[Any], nullable: bool, value: Any) -> str | None:
    """Say what a value must be; of a union, all that it may be."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return None
    try:
        kind.validate_json(text, strict=True)
    except ValidationError as error:
        reasons: dict[str, None] = {}
        for entry in error.errors():
            if entry["type"] == "needs_python_object":  # only an object is of this kind, and no value of a config
                continue
            item = next((f"item {part} " for part in entry["loc"] if isinstance(part, int)), "")
            words = WORDS.get(entry["type"]) or re.sub(r"^Input should (be )?", "", entry["msg"])
            reasons[f"{item}must be {words}"] = None
        if nullable:  # of which pydantic says nothing where the other kind is the nearer one
            reasons["must be null"] = None
        first, *others = reasons or ["is of no use here"]
        return " or ".join([first, *(other.removeprefix("must be ") for other in others)]) + "."
    return None


def near_matches(word: str, options: Iterable[str]) -> str:
    """Say which options are meant.

    Args:
        word: What was typed.
        options: What exists.

    Returns:
        ``did you mean a or b?``, or ``choose one of ...``.
    """
    options = sorted(options)
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(options)}."
