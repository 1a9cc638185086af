"""What a module says of itself, so that no other room need know its name: tasks, outputs, the words of its card, its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

Task = Literal["restore", "inpaint", "generate", "reconstruct", "judge"]
TASKS: tuple[Task, ...] = get_args(Task)
# Tasks whose outputs answer to the very images of a batch, so that they can be compared with these.
ANSWERING: frozenset[Task] = frozenset({"restore", "inpaint", "reconstruct"})
# Names of outputs that others ask for: of each task a module has at least one of these.
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "restore": ("sample", "mean"),
    "inpaint": ("sample", "mean"),
    "generate": ("sample",),
    "reconstruct": ("reconstruction",),
}
OUTPUT_WORDS: dict[str, str] = {"sample": "one plausible image", "mean": "the answer of least squared error"}


@dataclass(frozen=True)
class Output:
    """One of the named images that a module makes.

    Attributes:
        num_network_calls: Network calls behind an image, a mean where images differ; None for another picture of what an
            output before it has drawn, at no cost of its own.
        puts_back_known: Whether exactly known pixels may be put back into it; False for a picture that is meant to show
            them, too, as the network sees them.
    """

    num_network_calls: float | None
    puts_back_known: bool = True


@dataclass(frozen=True)
class Card:
    """What a model card says of a module; how it is called follows from its task.

    Attributes:
        title: What it is, with its source.
        use: What it is meant for; by task where it has several.
        limits: What it cannot do.
    """

    title: str
    use: str | Mapping[Task, str]
    limits: str

    def use_of(self, tasks: frozenset[Task]) -> str:
        """Return what a module of some tasks is meant for."""
        return self.use if isinstance(self.use, str) else " ".join(self.use[task] for task in TASKS if task in tasks)


@dataclass(frozen=True)
class Part:
    """A frozen network without which a module does nothing: it travels with the module's export.

    Attributes:
        settings: What it is built of: class and arguments, plain values.
        card: Markdown that describes it.
        beside: What is kept beside it by name, as what is costly to compute from it.
    """

    network: nn.Module
    settings: Mapping[str, Any]
    card: str
    beside: Mapping[str, Tensor] = field(default_factory=dict)


class Described:
    """What others ask a module, and not its name.

    Attributes:
        tasks: What such modules can do.
        card: What its model card says.
        part_keys: Arguments that name the file of a frozen network that it needs (``parts``), or are None where it does
            without.
        training_only: Arguments that an exported module does without, and what they are there.
        not_shardable: Why the paradigm cannot train with ``trainer=fsdp``, or None where it can.
        not_compilable: Why the paradigm cannot train with ``compile=true``, or None where it can.
    """

    tasks: ClassVar[frozenset[Task]]
    card: ClassVar[Card]
    part_keys: ClassVar[tuple[str, ...]] = ()
    training_only: ClassVar[Mapping[str, Any]] = {}
    not_shardable: ClassVar[str | None] = None
    not_compilable: ClassVar[str | None] = None

    def parts_record(self) -> dict[str, Any]:
        """Identify the trained parts that the module was built from: they must be the same whenever it is built again.

        Returns:
            ``{"path": ..., "hash": ...}`` by name of the config key.
        """
        return {}

    def parts(self) -> dict[str, Part]:
        """Return the frozen networks that travel with the module's export.

        Returns:
            A part for each of ``part_keys`` that is not None.
        """
        return {}

    def found_arguments(self) -> dict[str, Any]:
        """Return arguments that the module has found the values of in training, as an export keeps them: plain values."""
        return {}

    @classmethod
    def check_exported(cls, arguments: Mapping[str, Any]) -> None:
        """Check that an export, which has ``training_only`` in their place, does what a module of these arguments does.

        Args:
            arguments: The module's arguments, as they stand in a config.

        Raises:
            ValueError: It would do something else.
        """

    @classmethod
    def network_arguments(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the module adds to a network that its config describes in part.

        Args:
            arguments: The module's arguments.

        Returns:
            Further arguments of the network.
        """
        return {}

    @classmethod
    def serves_as(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Name the keys (``classifier``, ``tokenizer``, ``space``) that a trained run of such a module can be the value of.

        Args:
            arguments: The module's arguments, as they stand in a config.
        """
        return frozenset()

    @classmethod
    def choices_of_task(cls) -> tuple[str, ...]:
        """Return the tasks that such a module can be given, of which it then does that one; none where it always does all."""
        return ()

    @classmethod
    def tasks_of(cls, arguments: Mapping[str, Any]) -> frozenset[Task]:
        """Return what a module does, of all that its class can.

        Args:
            arguments: The module's arguments, as they stand in a config.
        """
        return cls.tasks

    @property
    def current_tasks(self) -> frozenset[Task]:
        """What this module does."""
        return self.tasks

    @classmethod
    def unread(cls, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Name the settings that a module has no use for.

        Args:
            arguments: The module's arguments, as they stand in a config.

        Returns:
            Why, in words, by group or key of the config.
        """
        if cls.tasks_of(arguments) & {"restore", "inpaint"}:
            return {}
        return {"degradation": "it sees clean images alone"}

    def check_contract(self) -> None:
        """Check that the module says of itself what others ask it for; called when it is built.

        Raises:
            ValueError: Something is missing or contradicts itself.
        """
        says_parts = not self.part_keys or type(self).parts is not Described.parts
        if not says_parts or not self.parts_record().keys() <= set(self.part_keys):
            raise ValueError(
                f"{type(self).__name__}.part_keys={list(self.part_keys)}, parts and parts_record must be of the same networks."
            )


class OnDemand(Mapping[str, Any]):
    """What an evaluation step offers to the callbacks: each entry is made when one of them first asks for it.

    Args:
        ready: Entries that cost nothing.
        makers: What makes the others.
        context: Precision in which they are made.
    """

    def __init__(
        self,
        ready: Mapping[str, Any],
        makers: Mapping[str, Callable[[], Any]],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._ready = dict(ready)
        self._makers = makers
        self._context = context

    def __getitem__(self, name: str) -> Any:
        if name not in self._ready:
            with self._context():
                self._ready[name] = self._makers[name]()
        return self._ready[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._ready, **self._makers})

    def __len__(self) -> int:
        return len(self._ready.keys() | self._makers.keys())


def fault_of_kind(kind: type) -> str | None:
    """Find what a module's class does not say of itself.

    Args:
        kind: A class of modules.

    Returns:
        What is missing or wrong, in words that begin with the class; None for a class that says all.
    """
    name, tasks = kind.__name__, getattr(kind, "tasks", None)
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        return f"{name} lacks {', '.join(missing)}: see docs/extending.md for what a module defines"
    if not isinstance(tasks, frozenset) or not tasks or not tasks <= set(TASKS):
        return f"{name}.tasks={tasks} must be a frozenset of what it does, of {', '.join(TASKS)}"
    if tasks != {"judge"} and not hasattr(kind, "sample"):
        return f"{name} makes images, as its tasks say: it must derive from lightning_modules.GenerativeModule"
    if not isinstance(getattr(kind, "card", None), Card):
        return f"{name}.card is missing: give title, use and limits as lightning_modules.Card(...), for the export's model card"
    return None


def fault_of_outputs(name: str, tasks: frozenset[Task], outputs: Any) -> str | None:
    """Find what is wrong with the outputs that a module says it makes.

    Args:
        name: Name of its class.
        outputs: What it says.

    Returns:
        What is wrong, in words that begin with the class; None where nothing is.
    """
    if not isinstance(outputs, dict) or not outputs or not all(isinstance(each, Output) for each in outputs.values()):
        return f"{name}.outputs must be a dict of lightning_modules.Output by name, such as {{'sample': Output(16)}}"
    calls = {key: each.num_network_calls for key, each in outputs.items()}
    if any(number is not None and number < 0 for number in calls.values()) or set(calls.values()) == {None}:
        return f"{name}.outputs has the network calls {calls}, but each number must be at least 0, and one be given"
    for task in TASKS:
        if task in tasks and (wanted := OUTPUTS.get(task, ())) and not outputs.keys() & set(wanted):
            return (
                f"{name} has the task {task}, so one of its outputs must be called {' or '.join(wanted)}: it has "
                + (", ".join(outputs))
            )
    return None
