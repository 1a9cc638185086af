"""A network for other programs: tensors in, tensors out, as a file of ``torch.export`` or of ONNX, compared with itself."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from files.packages import needed
from generative.types import Batch
from launch.errors import UserError, as_user_error, one_line
from lightning_modules import GenerativeModule, TrainingModule

Format = Literal["weights", "torch_export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: Mapping[str, str] = {"torch_export": "network.pt2", "onnx": "network.onnx"}
TOLERANCE = 1e-4  # of the outputs, relative to the largest of each where that is above 1
BATCH, CHECKED = 2, (1, 2, 5)  # images of the example, and of the checks
LARGEST = 65_536  # of a dimension that is not fixed
OPSET = 20
MAX_CALLS = 4  # of the network, in which a module shows all that it gives it
_AXES = re.compile(r"_[A-Z0-9]+$")
Named = dict[str, Tensor]


class _SeenEnoughError(Exception):
    pass


class TensorNetwork(nn.Module):
    """A network whose inputs and outputs are tensors alone.

    Args:
        network: The network.
        arguments: Arguments of a call, by name: tensors, or dataclasses of tensors such as ``Condition``.
        unread: Names of inputs that it does not look at.

    Attributes:
        inputs: Example tensors by name; a dataclass gives one for each of its tensors, as ``condition_labels``.
        outputs: Names of what it returns.
    """

    def __init__(self, network: nn.Module, arguments: Mapping[str, Any], unread: Sequence[str] = ()) -> None:
        super().__init__()
        self.network = network
        self.arguments = dict(arguments)
        self.inputs: Named = {}
        self.places: dict[str, tuple[str, str | None]] = {}
        for name, value in arguments.items():
            for part, tensor in ({None: value} if isinstance(value, Tensor) else _tensors(value)).items():
                own = "_".join(filter(None, (_AXES.sub("", name), part)))
                if own not in unread:
                    self.inputs[own], self.places[own] = tensor, (name, part)
        parameter = inspect.Parameter
        forward = self._forward_of(list(self.inputs))
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter(name, parameter.POSITIONAL_OR_KEYWORD) for name in self.inputs]
        )
        self.forward = forward
        with torch.no_grad():
            self.outputs = [name for name, _ in self._named(network(**self.arguments))]

    def _forward_of(self, names: list[str]) -> Callable[..., tuple[Tensor, ...]]:
        def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
            arguments = dict(self.arguments)
            for own, tensor in zip(names, tensors, strict=True):
                name, part = self.places[own]
                arguments[name] = tensor if part is None else replace(arguments[name], **{part: tensor})
            return tuple(tensor for _, tensor in self._named(self.network(**arguments)))

        return forward

    def _named(self, output: Any) -> list[tuple[str, Tensor]]:
        """Name what a network returns; what is not of each image, as a loss, is left out."""
        if isinstance(output, Tensor):
            return [("output", output)]
        if is_dataclass(output):
            return [(f"output_{name}", tensor) for name, tensor in _tensors(output).items() if tensor.ndim]
        return [(f"output_{number}" if len(output) > 1 else "output", each) for number, each in enumerate(output)]


@dataclass(frozen=True)
class TensorFile:
    """A network as a file for other programs.

    Attributes:
        name: Of the file.
        content: Of the file.
        card: Markdown: inputs, outputs, how closely they agree with the network's, and the code that runs it.
    """

    name: str
    content: bytes
    card: str


class _Written(NamedTuple):
    content: bytes
    run: Callable[[Named], Sequence[Tensor]]


def tensor_network(module: TrainingModule, config: Mapping[str, Any]) -> TensorNetwork:
    """Wrap a module's network, with the inputs that the module calls it with.

    Args:
        config: The run's config, plain containers.

    Raises:
        UserError: The module calls its network with what is no tensor.
    """
    data, classes = config["data"], int(config["data"]["num_classes"])
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(BATCH, data["channels"], data["image_size"], data["image_size"], generator=generator) * 2 - 1
    validity = torch.ones_like(image[:, :1])
    validity[..., : image.shape[-1] // 2] = 0
    labels = torch.eye(classes)[:1].repeat(BATCH, 1) if classes else None
    batch = Batch(image, torch.arange(BATCH), labels=labels, degraded=image * validity, validity=validity)
    called: list[dict[str, Any]] = []
    signature = inspect.signature(module.network.forward)

    def note(network: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        bound = signature.bind(*arguments, **named).arguments
        called.append({name: value for name, value in bound.items() if value is not None})
        if len(called) == MAX_CALLS:
            raise _SeenEnoughError

    handle = module.network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            if isinstance(module, GenerativeModule):
                module.sample(batch, module.evaluation_randomness(batch))
            else:
                module.network(image)
    except _SeenEnoughError:
        pass
    finally:
        handle.remove()
    kind = type(module).__name__
    if not called:
        raise UserError(f"{kind} makes its images without calling its network: leave out format=.")
    most = max(called, key=_count)
    if wrong := [name for name, value in most.items() if not isinstance(value, Tensor) and not is_dataclass(value)]:
        raise UserError(f"{kind} calls its network with {wrong[0]}, which is no tensor: leave out format=.")
    return TensorNetwork(module.network, most).eval()


def _count(arguments: Mapping[str, Any]) -> int:
    """Count the tensors of a call: of those with and without labels the first shows all inputs."""
    return sum(len(_tensors(value)) if is_dataclass(value) else 1 for value in arguments.values())


def tensor_file(wrapper: TensorNetwork, kind: Format) -> TensorFile:
    """Write a network as a file for other programs, and compare what that gives with what the network gives.

    Args:
        wrapper: The network; what it does not look at is left out of the file.
        kind: ``torch_export`` or ``onnx``.

    Raises:
        UserError: The network cannot be written so, what is needed is not installed, or the outputs differ by more than 1e-4.
    """
    if kind == "onnx":
        with as_user_error(), needed("onnx", "onnxscript", "onnxruntime", extra="onnx", by=f"format={kind}"):
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    try:
        program, free = _traced(wrapper)
        nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        read = program.graph_signature.user_inputs
        if unread := [name for name, node in zip(wrapper.inputs, read, strict=True) if not nodes[node].users]:
            wrapper = TensorNetwork(wrapper.network, wrapper.arguments, unread).eval()
            program = _program(wrapper, free)
        written = (_onnx if kind == "onnx" else _pt2)(program, wrapper)
    except Exception as error:  # what cannot be traced has no common error
        reason = one_line(error)[:200]
        raise UserError(f"format={kind}: {type(wrapper.network).__name__} cannot be written so: {reason}.") from error
    worst = max(_difference(wrapper, written, kind, number, free) for number in CHECKED)
    return TensorFile(FILES[kind], written.content, _card(wrapper, kind, worst, free))


def _traced(wrapper: TensorNetwork) -> tuple[Any, bool]:
    """Trace a network, of any height and width where it takes them and can be traced so."""
    if getattr(wrapper.network, "any_size", False):
        with suppress(Exception):  # what cannot be traced has no common error
            return _program(wrapper, True), True
    return _program(wrapper, False), False


def _program(wrapper: TensorNetwork, free: bool) -> Any:
    dims = [torch.export.Dim(name, min=1, max=LARGEST) for name in ("batch", "height", "width")]
    shapes = {
        name: {0: dims[0], **({2: dims[1], 3: dims[2]} if free and tensor.ndim == 4 else {})}
        for name, tensor in wrapper.inputs.items()
    }
    with torch.no_grad():
        return torch.export.export(wrapper, tuple(wrapper.inputs.values()), dynamic_shapes=shapes)


def _difference(wrapper: TensorNetwork, written: _Written, kind: Format, number: int, free: bool) -> float:
    """Return the largest difference from the network on random inputs, which must be small."""
    given = _others(wrapper.inputs, number, 8 * number if free and number != BATCH else 0)
    with torch.no_grad():
        expected, made = wrapper(*given.values()), written.run(given)
    worst = 0.0
    for name, here, there in zip(wrapper.outputs, expected, made, strict=True):
        same_kind = here.shape == there.shape and here.dtype == there.dtype
        error = float("inf")
        if same_kind:
            error = float((here.double() - there.double()).abs().max()) / max(1.0, float(here.abs().max()))
        if not error <= TOLERANCE:
            raise UserError(
                f"format={kind}: {name} of {number} images differs from the network's by {error:.1e}, more than "
                f"{TOLERANCE:.0e}: use format=weights."
            )
        worst = max(worst, error)
    return worst


def _others(inputs: Named, number: int, more: int) -> Named:
    """Return random values of the same kinds and ranges, in another number and of a size of so many more pixels."""
    generator = torch.Generator().manual_seed(number)
    others = {}
    for name, tensor in inputs.items():
        side = [size + more for size in tensor.shape[2:]] if tensor.ndim == 4 else list(tensor.shape[1:])
        shape = (number, *tensor.shape[1:2], *side) if tensor.ndim == 4 else (number, *side)
        if tensor.is_floating_point():
            low, high = float(tensor.min()), float(tensor.max())
            if low == high:  # a time or a share of the first step alone
                low, high = min(low, 0.0), max(high, 0.0) or 1.0
            others[name] = torch.rand(shape, generator=generator) * (high - low) + low
        else:
            others[name] = torch.randint(0, int(tensor.max()) + 1, shape, generator=generator, dtype=tensor.dtype)
    return others


def _pt2(program: Any, wrapper: TensorNetwork) -> _Written:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the files of this machine
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    return _Written(file.getvalue(), lambda tensors: loaded(*tensors.values()))


def _onnx(program: Any, wrapper: TensorNetwork) -> _Written:
    import onnxruntime

    names, outputs = list(wrapper.inputs), wrapper.outputs
    exported: Any = torch.onnx.export(
        program, dynamo=True, opset_version=OPSET, input_names=names, output_names=outputs, verbose=False
    )
    proto = exported.model_proto
    for nodes in (_nodes(proto.graph), *(function.node for function in proto.functions)):
        for node in nodes:
            del node.metadata_props[:]  # names the files of this machine
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(tensors: Named) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(None, {name: t.numpy() for name, t in tensors.items()})]

    return _Written(content, run)


def _nodes(graph: Any) -> list[Any]:
    inner = [g for node in graph.node for a in node.attribute for g in (a.g, *a.graphs) if g.node]
    return [*graph.node, *(node for g in inner for node in _nodes(g))]


def _card(wrapper: TensorNetwork, kind: Format, worst: float, free: bool) -> str:
    """Write what the file takes and gives; ranges are what the network's own docstrings say."""
    lines, given = [], []
    own = _said(type(wrapper.network).forward)
    for name, tensor in wrapper.inputs.items():
        argument, part = wrapper.places[name]
        said = own if part is None else _said(type(wrapper.arguments[argument]))
        text = said.get(part or argument, "see the network's documentation")
        lines.append(f"| `{name}` | {_shape(tensor, free)} | {_type(tensor)} | {text.replace('|', '/')} |")
        shape = ", ".join(map(str, (4, *tensor.shape[1:])))
        given.append(f"{name} = {'np' if kind == 'onnx' else 'torch'}.zeros(({shape}), {_type(tensor, kind)})")
    head = ["| input | shape | type | |", "| --- | --- | --- | --- |"]
    left, names = ", ".join(wrapper.outputs) + ("," if len(wrapper.outputs) == 1 else ""), list(wrapper.inputs)
    if kind == "onnx":
        named = ", ".join(f'"{name}": {name}' for name in names)
        start = [
            "import numpy as np",
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{FILES[kind]}")',
        ]
        call = f"{left} = session.run(None, {{{named}}})"
    else:
        start = ["import torch", "", f'network = torch.export.load("{FILES[kind]}").module()']
        call = f"{left} = network({', '.join(names)})"
    sizes = "any number B of images" + (" and any height H and width W" if free else "")
    return "\n".join([
        "## For other programs", "",
        f"`{FILES[kind]}` is the network alone, of float32 weights, without the sampler and the images' rounding: tensors in, "
        f"tensors out ({', '.join(f'`{name}`' for name in wrapper.outputs)}), of {sizes}. Its outputs were compared with the "
        f"network's on random inputs of {', '.join(map(str, CHECKED))} images: the largest difference was {worst:.0e}.",
        "", *head, *lines, "", "```python", *start, *given, call, "```", "",
    ])  # fmt: skip


def _said(owner: Any) -> dict[str, str]:
    """Read what a docstring says of each argument or attribute."""
    found: dict[str, str] = {}
    name = None
    for line in (inspect.getdoc(owner) or "").splitlines():
        if begins := re.match(r" {4}(\w+): (.*)", line):
            name = begins.group(1)
            found[name] = begins.group(2)
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
        else:
            name = None
    return found


def _shape(tensor: Tensor, free: bool) -> str:
    sides = ["H", "W"] if free and tensor.ndim == 4 else [*map(str, tensor.shape[2:])]
    return f"({', '.join(['B', *map(str, tensor.shape[1:2]), *sides])})"


def _type(tensor: Tensor, kind: Format | None = None) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return name if kind is None else f"{'np' if kind == 'onnx' else 'dtype=torch'}.{name}"


def _tensors(value: Any) -> dict[str | None, Tensor]:
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: each for name, each in found.items() if isinstance(each, Tensor)}
