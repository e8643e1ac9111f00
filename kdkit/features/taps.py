"""Feature taps: record the output of named layers of any module while it runs, with forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdkit.errors import ConfigError, did_you_mean
from kdkit.features.attention import attention_part

__all__ = [
    "HIDDEN_STATES",
    "INPUT",
    "PENULTIMATE",
    "FeatureTap",
    "LayerInfo",
    "find_blocks",
    "find_head",
    "find_layer",
    "list_layers",
]

PENULTIMATE = "penultimate"
"""Layer name of the classifier's input."""

HIDDEN_STATES = "hidden_states."
"""Prefix of the layer names ``hidden_states.0`` (embeddings) to ``hidden_states.N`` (what comes out at the end)."""


INPUT = "input:"
"""Prefix of a layer name that means what goes into the layer instead of what comes out."""


class LayerInfo(NamedTuple):
    """One layer: dotted name, class name, and shape of its output (``None`` if it did not run or is no tensor)."""

    name: str
    type: str
    shape: tuple[int, ...] | None


def unwrap(module: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``; anything else as it is."""
    inner = getattr(module, "_orig_mod", module)
    assert isinstance(inner, nn.Module)
    return inner


def channels_last(module: nn.Module) -> bool:
    """Whether the maps inside are ``[B, H, W, C]``: networks of timm say so, and Swin of torchvision is known."""
    module = unwrap(module)
    return getattr(module, "output_fmt", None) == "NHWC" or type(module).__module__.endswith(".swin_transformer")


def _declared_head(module: nn.Module) -> nn.Module | None:
    """What the model's own API calls its head: timm's ``get_classifier``, transformers' ``get_output_embeddings``."""
    for method in ("get_classifier", "get_output_embeddings"):
        getter = getattr(module, method, None)
        if callable(getter):
            head = getter()
            head = head[0] if isinstance(head, tuple | list) and head else head
            if isinstance(head, nn.Module) and not isinstance(head, nn.Identity):
                return head
    return None


def find_head(module: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the classifier (images) or vocabulary projection (text).

    The model's own API decides where there is one (timm ``get_classifier``, transformers
    ``get_output_embeddings``); otherwise it is the last ``nn.Linear`` in order of definition.

    Raises:
        ConfigError: if the module has no linear layer at all.
    """
    module = unwrap(module)
    names = {id(layer): name for name, layer in module.named_modules()}
    head = _declared_head(module)
    if head is not None and id(head) in names:
        return names[id(head)], head
    linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"'{PENULTIMATE}' needs a linear classifier, and {type(module).__name__} has none; tap a layer by its name"
        )
    return linear[-1]


def _language_head(module: nn.Module) -> bool:
    """Whether a module of transformers ends in a projection to its vocabulary."""
    getter = getattr(module, "get_output_embeddings", None)
    return callable(getter) and getter() is not None


def find_blocks(module: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The stack of layers of a transformers model of text: a language model, an encoder or a classifier on one."""
    config = getattr(module, "config", None)
    encoder = isinstance(getattr(module, "base_model", None), nn.Module) and hasattr(config, "vocab_size")
    if not encoder and not _language_head(module):
        return None
    depth = getattr(config, "num_hidden_layers", None)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.ModuleList) and len(layer) == depth:
            return name, layer
    return None


def find_layer(module: nn.Module, layer: str) -> tuple[nn.Module, bool]:
    """The submodule that a layer name means, and whether its input (true) or its output (false) is the feature.

    Args:
        module: the network.
        layer: a name of ``module.named_modules()``, ``"input:NAME"`` for what goes into that module;
            ``"penultimate"`` for the input of the classifier; for models of text of transformers also
            ``"hidden_states.N"`` as in their ``output_hidden_states`` (0 = embeddings, the last one = after the final
            norm; negative N count from the end); for transformers ``"attentions.N"``, ``"queries.N"``, ``"keys.N"`` and
            ``"values.N"``, see ``kdkit.features.attention``.

    Raises:
        ConfigError: for an unknown name, listing close ones.
    """
    module = unwrap(module)
    if layer == PENULTIMATE:
        return find_head(module)[1], True
    named = dict(module.named_modules())
    named.pop("", None)
    if layer in named:
        return named[layer], False
    if layer.startswith(INPUT) and layer.removeprefix(INPUT) in named:
        return named[layer.removeprefix(INPUT)], True
    part = attention_part(module, layer)
    if part is not None:
        return part.module, part.before
    blocks = find_blocks(module)
    states = [] if blocks is None else [f"{HIDDEN_STATES}{i}" for i in range(len(blocks[1]) + 1)]
    if blocks is not None and layer.startswith(HIDDEN_STATES) and layer.removeprefix(f"{HIDDEN_STATES}-").isdecimal():
        layer = dict(zip([f"{HIDDEN_STATES}-{len(states) - i}" for i in range(len(states))], states)).get(layer, layer)
    if blocks is not None and layer in states:
        index = states.index(layer)
        if index == len(blocks[1]) and not _language_head(module):
            return module.base_model, False  # type: ignore[return-value]
        if index == len(blocks[1]):
            return find_head(module)[1], True
        return blocks[1][index], True
    hint = did_you_mean(layer, [PENULTIMATE, *states, *named])
    raise ConfigError(f"{type(module).__name__} has no layer '{layer}'{hint}")


def find_norm(module: nn.Module, layer: str) -> nn.BatchNorm2d | None:
    """The batch norm that a tapped map comes from: the layer itself, or for the input of a layer in a block (the last
    activation of a residual block) the last batch norm of that block's main path; ``None`` where there is none."""
    module = unwrap(module)
    named = dict(module.named_modules())
    found = named.get(layer)
    if isinstance(found, nn.BatchNorm2d):
        return found
    block = named.get(layer.removeprefix(INPUT).rpartition(".")[0]) if layer.startswith(INPUT) else None
    if block is None or block is module:
        return None
    norms = [
        norm
        for name, norm in block.named_modules()
        if isinstance(norm, nn.BatchNorm2d) and name.split(".")[0] not in ("shortcut", "downsample")
    ]
    return norms[-1] if norms else None


def _first_tensor(value: Any) -> Tensor | None:
    """The tensor, the first tensor of a tuple or list, or the ``last_hidden_state`` of a model output."""
    if isinstance(value, Tensor):
        return value
    state = getattr(value, "last_hidden_state", None)
    if isinstance(state, Tensor):
        return state
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((item for item in value if isinstance(item, Tensor)), None)
    return None


class FeatureTap:
    """Records layers of a module by forward hooks.

    The hooks stay until :meth:`remove`, but record only inside :meth:`recording`; each recording starts empty, and
    nothing refers to its tensors once the caller drops them. A layer that runs several times in one forward pass
    leaves its last value. Works with ``module.compile()`` and ``torch.compile(module)`` if the tap is placed before
    the first compiled call.

    Args:
        module: any ``nn.Module``, compiled or not.
        layers: pair name -> layer name as :func:`find_layer` knows them.

    Raises:
        ConfigError: for a layer name that does not exist, listing close ones.
    """

    def __init__(self, module: nn.Module, layers: Mapping[str, str]) -> None:
        self.layers = dict(layers)
        self._features: dict[str, Tensor] | None = None
        self._channels_last = channels_last(module)
        self._handles: list[RemovableHandle] = []
        self._found = found = {pair: find_layer(module, layer) for pair, layer in self.layers.items()}
        named = dict(unwrap(module).named_modules())
        parts = {pair: attention_part(unwrap(module), name) for pair, name in layers.items() if name not in named}
        self._parts = {pair: part for pair, part in parts.items() if part is not None}
        for part in self._parts.values():
            part.unfuse()
        for pair, (target, before) in found.items():  # partials of methods: they follow a deepcopy of the network
            if before:
                handle = target.register_forward_pre_hook(partial(self._record_input, pair), with_kwargs=True)
            else:
                handle = target.register_forward_hook(partial(self._record_output, pair))
            self._handles.append(handle)

    def _record(self, pair: str, value: Any) -> None:
        if self._features is None:
            return
        if pair in self._parts:
            self._features[pair] = self._parts[pair].pick(value)
            return
        tensor = _first_tensor(value)
        if tensor is None:
            raise ConfigError(
                f"layer '{self.layers[pair]}' of feature '{pair}' gives {type(value).__name__}, not a tensor; "
                "tap a layer inside it or after it"
            )
        if tensor.ndim == 4 and self._channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        self._features[pair] = tensor

    def _record_input(self, pair: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._record(pair, args if args else kwargs)
        if self._features is not None and getattr(module, "inplace", False):
            self._features[pair] = self._features[pair].clone()  # the module is about to overwrite it

    def _record_output(self, pair: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._record(pair, output)

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Yields a dict, empty at first, that the layers fill while the module runs inside the block.

        Raises:
            ConfigError: at the end, if a tapped layer did not run.
        """
        features: dict[str, Tensor] = {}
        self._features = features
        try:
            yield features
        finally:
            self._features = None
        missing = [pair for pair in self.layers if pair not in features]
        if missing:
            raise ConfigError(
                f"layer '{self.layers[missing[0]]}' of feature '{missing[0]}' did not run in this forward pass; "
                "tap one that does (`kdkit ls layers` shows them)"
            )

    def skipped(self, module: nn.Module, given: Tensor) -> None:
        """Record what ``module`` would have been given, had it been called."""
        for pair, (target, before) in self._found.items():
            if target is module and before:
                self._record(pair, given)

    def remove(self) -> None:
        """Take the hooks off the module."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for part in self._parts.values():
            part.restore()


def list_layers(module: nn.Module, example: Tensor | Mapping[str, Tensor] | Callable[[], object]) -> list[LayerInfo]:
    """Every layer that can be tapped, in order of definition, after one forward pass in evaluation mode.

    Args:
        module: the network; its training mode is restored.
        example: one input tensor, keyword inputs, or a function without arguments that runs the module.

    Returns:
        One entry per named submodule, then ``penultimate`` with the shape of the classifier's input.
    """
    module = unwrap(module)
    shapes: dict[str, tuple[int, ...]] = {}
    handles: list[RemovableHandle] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None:
                shapes[name] = tuple(tensor.shape)

        return hook

    def watch_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = _first_tensor(args if args else kwargs)
        if tensor is not None:
            shapes[PENULTIMATE] = tuple(tensor.shape)

    named = [(name, layer) for name, layer in module.named_modules() if name]
    handles += [layer.register_forward_hook(watch(name)) for name, layer in named]
    head: nn.Module | None = None
    if any(isinstance(layer, nn.Linear) for _, layer in named):
        head = find_head(module)[1]
        handles.append(head.register_forward_pre_hook(watch_input, with_kwargs=True))
    training = module.training
    try:
        module.eval()
        with torch.no_grad():
            _run(module, example)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    layers = [LayerInfo(name, type(layer).__name__, shapes.get(name)) for name, layer in named]
    if head is not None:
        layers.append(LayerInfo(PENULTIMATE, f"input of {type(head).__name__}", shapes.get(PENULTIMATE)))
    return layers


def _run(module: nn.Module, example: Tensor | Mapping[str, Tensor] | Callable[[], object]) -> None:
    if isinstance(example, Tensor):
        module(example)
    elif isinstance(example, Mapping):
        module(**example)
    else:
        example()
