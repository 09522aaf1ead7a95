"""What a model's folder must hold before anything of it is loaded: files that can be read, sizes that can be
meant, weights that its config describes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from threading import get_ident
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/"
OBJECTS = ("config.json", "generation_config.json", INDEX)
TOKENIZER_OBJECTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_LAYERS = 10_000
SIZES = (*LAYERS, "hidden_size", "n_embd", "d_model", "vocab_size", "max_position_embeddings", "n_positions")
NOT_NEGATIVE = re.compile(r"(intermediate_size|head_dim|num_\w+_heads|n_heads?|\w+_(theta|eps|epsilon))$")
LEFT_OVER = re.compile(r"(rotary_emb\.inv_freq|masked_bias|(^|\.)position_ids)$")
"""Buffers of old checkpoints, which a model computes by itself."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file tells it."""

    file: str
    shape: tuple[int, ...]
    is_float: bool


Stored = Mapping[str, StoredTensor]


def read_object(path: Path, name: str) -> dict[str, Any]:
    """The object that a JSON file of the model `name` holds. Raises BasiscopeError where it holds none."""
    try:
        raw = path.read_bytes()
        _refuse_pointer(path, raw, name)
        found = json.loads(raw.decode())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, BasiscopeError):
            raise
        raise cannot_load(name, f"{path.name}: {reason(error)}") from error
    if not isinstance(found, dict):
        raise cannot_load(name, f"{path.name} holds {_kind(found)} instead of an object")
    return found


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:300]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    speaks = type(error).__module__ != "builtins" or isinstance(error, OSError | ValueError | RuntimeError)
    return said if said and (speaks or type(error) is Exception) else f"{type(error).__name__}: {said}"


def with_fields(config: Mapping[str, Any], said: str) -> str:
    """A reason, and the fields of a config whose values it speaks of where it names none."""
    words = set(re.findall(r"[\w.-]+", said))
    fields = [(field, value) for field, value in _fields(config) if type(value) in (int, float, str)]
    if words & {field.split(".")[-1] for field, _ in fields}:
        return said
    found = [f"{field}: {value}" for field, value in fields if str(value) in words and not field.endswith("_id")]
    return f"{said} ({', '.join(found)})" if 0 < len(found) < 4 else said


def cannot_load(name: str, why: str) -> BasiscopeError:
    return BasiscopeError(f"Model {name}: it cannot be loaded ({why}).")


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(POINTER))


def _refuse_pointer(path: Path, start: bytes, name: str) -> None:
    if start.startswith(POINTER):
        raise BasiscopeError(
            f"Model {name}: {path.name} is a Git LFS pointer, not the file itself; run `git lfs pull` in "
            f"{path.parent}, or give the model's hub id."
        )


# --- files ----------------------------------------------------------------------------------------------


def has_weights(folder: Path) -> bool:
    """Whether it has a model's own weights, be they whole or not; an adapter's do not count."""
    return any(path.name != ADAPTER_WEIGHTS for path in folder.glob(WEIGHTS))


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a PEFT adapter and no model of its own."""
    return (folder / ADAPTER).is_file() and not has_weights(folder)


def adapter_base(folder: Path, name: str) -> tuple[str, str | None]:
    """The name and the revision of the model that an adapter was made for. Raises BasiscopeError where it does not
    say so, or has no safetensors weights."""
    said = read_object(folder / ADAPTER, name)
    base, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not (isinstance(base, str) and base):
        raise BasiscopeError(
            f"Model {name}: it is a PEFT adapter whose {ADAPTER} names no model in base_model_name_or_path; write "
            "it there, or merge the adapter into its model."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise BasiscopeError(
            f"Model {name}: it is a PEFT adapter without {ADAPTER_WEIGHTS}. Pickled weights (.bin) are never "
            "loaded."
        )
    return base, revision if isinstance(revision, str) else None


def check_objects(folder: Path, name: str) -> dict[str, Any]:
    """The config of a folder. Raises BasiscopeError where its JSON files cannot be read, or where they hold what
    cannot be meant."""
    found = {file: read_object(folder / file, name) for file in OBJECTS if (folder / file).is_file()}
    config = found["config.json"]
    if not isinstance(config.get("model_type"), str):
        raise cannot_load(name, "config.json has no model_type, so its architecture is not known")
    for field, value in _fields(config):
        if isinstance(value, float) and value != value:
            raise cannot_load(name, f"config.json: {field} is NaN")
        key = field.split(".")[-1]
        if key in LAYERS and isinstance(value, int) and value > MOST_LAYERS:
            raise cannot_load(name, f"config.json: {field} is {value:,}; no model has so many blocks")
        if isinstance(value, int | float) and value < (key in SIZES) and (key in SIZES or NOT_NEGATIVE.match(key)):
            raise cannot_load(name, f"config.json: {field} is {value}, expected a positive number")
    _check_tokens("generation_config.json", found.get("generation_config.json", {}), name)
    return config


def _check_tokens(file: str, found: Mapping[str, Any], name: str) -> None:
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = found.get(field)
        ids = value if isinstance(value, list) and field == "eos_token_id" else [0 if value is None else value]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
            raise cannot_load(name, f"{file}: {field} is {json.dumps(value)[:40]}, expected a token's number")


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _fields(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Raises BasiscopeError where a small file of the tokenizer's cannot be read: a default would take its
    place."""
    for file in TOKENIZER_OBJECTS[:-1]:
        if (folder / file).is_file():
            read_object(folder / file, name)
    for path in (folder / TOKENIZER_OBJECTS[-1], *folder.glob("*.model"), *folder.glob("vocab.*")):
        if path.is_file():
            _refuse_pointer(path, _start(path), name)
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            _refuse_pointer(template, template.read_bytes(), name)
            if not template.read_text(encoding="utf-8").strip():
                raise cannot_load(name, f"{template.name} is empty")
        except UnicodeDecodeError as error:
            raise cannot_load(name, f"{template.name}: {error}") from error


def damaged_tokenizer(folder: Path, name: str, error: BaseException) -> BasiscopeError:
    """What to say of a tokenizer that was not loaded: which of its files is damaged, where one is."""
    for file in TOKENIZER_OBJECTS:
        if (folder / file).is_file():
            try:
                read_object(folder / file, name)
            except BasiscopeError as found:
                return found
    from tokenizers import Tokenizer

    said, whole = reason(error), folder / TOKENIZER_OBJECTS[-1]
    try:
        if whole.is_file():
            Tokenizer.from_file(str(whole))
            said = f"tokenizer_config.json: {said}" if (folder / "tokenizer_config.json").is_file() else said
    except Exception as found:
        said = f"{whole.name}: {reason(found)}"
    return BasiscopeError(f"Model {name}: its tokenizer cannot be loaded ({said}).")


# --- weights --------------------------------------------------------------------------------------------


def stored_tensors(folder: Path, name: str) -> dict[str, StoredTensor]:
    """The tensors by name, from the headers of the files that are loaded.

    Raises BasiscopeError where one is missing or damaged, or is a Git LFS pointer.
    """
    found: dict[str, StoredTensor] = {}
    listed = weight_map(folder, name)
    for file in sorted(set(listed.values())) or ["model.safetensors"]:
        found.update(_header(folder / file, name))
    if lost := sorted(listed.keys() - found.keys()):
        raise cannot_load(
            name,
            f"{INDEX} lists {len(lost)} tensors that their files lack (first: {lost[0]} in {listed[lost[0]]})",
        )
    return found


def weight_map(folder: Path, name: str) -> dict[str, str]:
    """Tensor -> file by the index, none where the model is in one file. Raises BasiscopeError for what is none."""
    if (folder / "model.safetensors").is_file() or not (folder / INDEX).is_file():
        return {}
    listed = read_object(folder / INDEX, name).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise cannot_load(name, f"{INDEX}: weight_map names no files")
    if bad := [one for one in listed.values() if not isinstance(one, str) or not one or PurePath(one).name != one]:
        raise cannot_load(
            name, f"{INDEX}: weight_map names {json.dumps(bad[0])[:80]}, which is no file in this folder"
        )
    return listed


def _header(path: Path, name: str) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise cannot_load(name, f"it has no file {path.name}")
    try:
        _refuse_pointer(path, _start(path), name)
        with safe_open(path, framework="pt") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            return {
                key: StoredTensor(path.name, tuple(one.get_shape()), one.get_dtype().startswith(("F", "BF")))
                for key, one in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise cannot_load(name, f"{path.name} is damaged: {reason(error)}") from error


@contextmanager
def no_larger_than(stored: Stored, folder: Path, name: str) -> Iterator[None]:
    """Within it a module is built that must not have more parameters than its files have bits.

    Raises BasiscopeError as soon as there are more: what is not in the files would be allocated and random.
    """
    from torch.nn.modules import module as registry

    most = 8 * sum((folder / file).stat().st_size for file in {one.file for one in stored.values()})
    builder, count = get_ident(), 0

    def hook(_module: Any, at: str, tensor: Any) -> None:
        nonlocal count
        if get_ident() != builder or tensor is None:
            return
        count += tensor.numel()
        if count > most:
            shape = " x ".join(map(str, tensor.shape))
            raise cannot_load(
                name,
                f"config.json asks for far more than its files hold, such as a {at} of {shape}; see its sizes",
            )

    handles = [
        registry.register_module_parameter_registration_hook(hook),
        registry.register_module_buffer_registration_hook(hook),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_weights(module: PreTrainedModel, stored: Stored, name: str) -> None:
    """Holds the tensors of the files against a model without weights (on the device `meta`), by loading their
    shapes as transformers loads the weights. Of a quantised model nothing is said: its tensors have other shapes.

    Raises BasiscopeError where tensors are missing, are of another shape, or would be dropped without a word.
    """
    import torch

    if getattr(module.config, "quantization_config", None):
        return
    empty = {key: torch.empty(one.shape, device="meta") for key, one in stored.items()}
    loaded: Any = type(module).from_pretrained(
        None,
        config=module.config,
        state_dict=empty,
        device_map={"": "meta"},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        local_files_only=True,
    )
    check_loaded(module.config, loaded[1], name, stored)


def check_loaded(
    config: PreTrainedConfig,
    info: Mapping[str, Any],
    name: str,
    stored: Stored,
) -> None:
    """Raises BasiscopeError by what transformers says of a loading: tensors missing, of another shape or without a
    place; those that the architecture declares to be ignored are not among them."""
    for key, held, asked in sorted(info["mismatched_keys"]):
        raise cannot_load(name, _mismatch(config, key, tuple(held), tuple(asked), stored))
    foreign = sorted(key for key in info["unexpected_keys"] if _has_meaning(key, stored))
    if said := _more_blocks(config, foreign):
        raise cannot_load(name, said)
    if missing := sorted(info["missing_keys"]):
        depth, field = _depth(config)
        is_deeper = max(_blocks(missing), default=-1) > max(_blocks(stored), default=-1)
        why = f" by {field} {depth} in config.json" if is_deeper else ""
        raise BasiscopeError(
            f"Model {name}: its files lack {len(missing)} of its weights (first: {missing[0]}){why}, which would "
            "be random. Fetch the whole model again."
        )
    if foreign and not getattr(config, "quantization_config", None):
        file = stored[foreign[0]].file if foreign[0] in stored else "its files"
        raise cannot_load(
            name,
            f"{file}: {len(foreign)} of its tensors have no place in a model of type {config.model_type} by this "
            f"config.json and would be dropped (first: {foreign[0]})",
        )


def _has_meaning(key: str, stored: Stored) -> bool:
    """Whether a tensor without a place was learnt: masks and positions that old checkpoints kept were not."""
    return not LEFT_OVER.search(key) and (key not in stored or stored[key].is_float)


def _more_blocks(config: PreTrainedConfig, foreign: list[str]) -> str | None:
    depth, field = _depth(config)
    held = max(_blocks(foreign), default=-1) + 1
    if not isinstance(depth, int) or held <= depth:
        return None
    return (
        f"config.json says {field} {depth}, the files have weights of {held} blocks: the last {held - depth} "
        f"would be dropped; mend {field}, or fetch the model again"
    )


def _depth(config: PreTrainedConfig) -> tuple[Any, str]:
    """The number of blocks, and its name in config.json."""
    text = config.get_text_config()
    field = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    return getattr(text, "num_hidden_layers", None), field


def _blocks(keys: Iterable[str]) -> list[int]:
    """The numbers of the blocks whose tensors these are."""
    return [int(found[1]) for key in keys if (found := re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", key))]


def _mismatch(
    config: PreTrainedConfig,
    key: str,
    held: tuple[int, ...],
    asked: tuple[int, ...],
    stored: Stored,
) -> str:
    """The tensor whose shape differs, with the fields of config.json that have the size which is not so."""
    wrong = {a for a, h in zip(asked, held, strict=False) if a != h} if len(asked) == len(held) else set(asked)
    said = config.to_dict()
    fields = [
        f"{field} {value}"
        for field, value in _fields(said)
        if type(value) is int and value in wrong and not field.endswith("_id")
    ]
    file = stored[key].file if key in stored else "its files"
    sizes = [" x ".join(map(str, shape)) for shape in (held, asked)]
    by = f" ({', '.join(fields)})" if fields else ""
    return f"{file}: {key} is {sizes[0]}, by config.json{by} it would be {sizes[1]}"


def check_finite(module: PreTrainedModel, name: str, dtype: str) -> None:
    """Raises BasiscopeError where a weight is not a number or infinite. One pass over the weights."""
    import torch

    floats = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    kept = module.state_dict().keys()  # without the buffers that are not of the files
    ends = {
        key: torch.stack(weight.aminmax())
        for key, weight in chain(module.named_parameters(), module.named_buffers())
        if key in kept and weight.dtype in floats and weight.numel() and not weight.is_meta
    }
    by_device: dict[torch.device, list[str]] = {}
    for key, pair in ends.items():
        by_device.setdefault(pair.device, []).append(key)
    for keys in by_device.values():
        finite = torch.stack([ends[key].float() for key in keys]).isfinite().all(dim=1).tolist()
        if bad := [key for key, is_fine in zip(keys, finite, strict=True) if not is_fine]:
            more = "" if dtype == "float32" else f" in {dtype}; try --dtype float32"
            raise BasiscopeError(
                f"Model {name}: {len(bad)} of its weights have values that are no numbers or infinite (first: "
                f"{bad[0]}){more}."
            )


# --- adapters -------------------------------------------------------------------------------------------


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, or where an adapter lies beside its weights, one of links to all but the adapter, which
    transformers would apply without a word."""
    if not (folder / ADAPTER).is_file():
        yield folder
        return
    with TemporaryDirectory() as links:
        for path in folder.iterdir():
            if not path.match("adapter_*"):
                (Path(links) / path.name).symlink_to(path.resolve())
        yield Path(links)


def merged(module: PreTrainedModel, adapter: Path, name: str) -> PreTrainedModel:
    """The model with the adapter added to its weights. Raises BasiscopeError where it is of a kind that cannot be
    added, or was made for another model."""
    from peft import PeftConfig, PeftModel

    held = _header(adapter / ADAPTER_WEIGHTS, name)
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        both = PeftModel(module, config)
    except Exception as error:  # it is what its file says
        raise cannot_load(name, f"{ADAPTER}: {reason(error)}") from error
    kind = getattr(config.peft_type, "value", config.peft_type)
    if not hasattr(both.base_model, "merge_and_unload"):
        raise BasiscopeError(
            f"Model {name}: it is a PEFT adapter of kind {kind}, which cannot be merged into a model's weights."
        )
    ends = module.get_input_embeddings(), module.get_output_embeddings()
    if ends[1] and ends[0].weight is ends[1].weight and any(re.search("lm_head|embed", key) for key in held):
        raise BasiscopeError(
            f"Model {name}: its adapter changes the embedding or the output layer, which are one in its model, so "
            "it cannot be merged; give a model that was merged by what trained it."
        )
    try:
        result = both.load_adapter(str(adapter), "default")
    except RuntimeError as error:
        raise cannot_load(name, f"{ADAPTER_WEIGHTS} does not fit {ADAPTER}: {reason(error)}") from error
    if lost := [*result.missing_keys, *result.unexpected_keys]:
        raise cannot_load(
            name, f"{ADAPTER_WEIGHTS} and {ADAPTER} differ in {len(lost)} tensors (first: {sorted(lost)[0]})"
        )
    return both.merge_and_unload(safe_merge=True)
