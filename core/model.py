"""Load a causal language model and find its blocks: the only code that knows about architectures."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from core.errors import BasiscopeError
from core.model_folder import (
    ADAPTER,
    WEIGHTS,
    Stored,
    adapter_base,
    cannot_load,
    check_finite,
    check_loaded,
    check_objects,
    check_tokenizer_files,
    check_weights,
    damaged_tokenizer,
    has_weights,
    is_adapter,
    merged,
    no_larger_than,
    reason,
    stored_tensors,
    weight_map,
    with_fields,
    without_adapter,
)
from core.paths import is_open_folder, is_seen_file, is_there, typed_path

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "bfloat16", "float16")
MODEL_FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "tekken.json")
FIRST_TOKENS = 4
NOT_MODEL_FILES = ("consolidated*", "original/*", "*/*")


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model with its tokenizer. `blocks` are the decoder layers in order; `fingerprint` names the
    content of its files; `base` is the model that the PEFT adapter `name` was merged into, where it is one;
    `notes` say what of the folder a person may not expect."""

    name: str
    revision: str | None
    fingerprint: str
    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: nn.ModuleList
    base: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def hidden_size(self) -> int:
        return int(self.module.config.get_text_config().hidden_size)

    @property
    def context(self) -> int | None:
        """The number of positions the model was made for, or None where it has no such limit."""
        return getattr(self.module.config.get_text_config(), "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        """The rows of the embedding: the tokens that the model knows are below it."""
        return len(self.module.get_input_embeddings().weight)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.module.get_input_embeddings().weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> str:
        return str(self.module.dtype).removeprefix("torch.")


def is_folder(name: str) -> bool:
    """Whether `name` means a folder here rather than a hub id: it exists, or is written as a path."""
    return name.startswith(("/", ".", "~")) or is_there(Path(name))


def locate_model(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder with the model's files, of a hub model without its `weights` only the small ones, of a PEFT
    adapter the folder of the model that it was made for. What the local cache has is not downloaded again.

    Raises BasiscopeError where there is no such folder or hub model, or it holds no safetensors weights.
    """
    folder = _own_folder(name, revision, weights)
    if not is_adapter(folder):
        return folder
    base, of_base = adapter_base(folder, name)
    try:
        found = _own_folder(base, of_base, weights)
    except BasiscopeError as error:
        raise BasiscopeError(
            f"Model {name}: it is a PEFT adapter of {base}, which is not here: write its place into "
            f"base_model_name_or_path of {ADAPTER}, or merge the two where it is (PEFT's `merge_and_unload`, then "
            f"`save_pretrained`). {error}"
        ) from error
    if is_adapter(found):
        raise BasiscopeError(
            f"Model {name}: it is a PEFT adapter of {base}, an adapter itself; merge that one first."
        )
    return found


def _own_folder(name: str, revision: str | None, weights: bool) -> Path:
    """The folder of a model, or of an adapter itself."""
    if is_folder(name):
        folder = typed_path(name)
        if not is_open_folder(folder):
            raise BasiscopeError(f"Model: there is no folder {folder} that can be read.")
    else:
        folder = _snapshot(name, revision, weights)
    if is_adapter(folder):
        return folder
    if not (folder / "config.json").is_file():
        raise BasiscopeError(f"Model {name}: {folder} has no config.json, so it is not a transformers model.")
    if not has_weights(folder) and (weights or is_folder(name)):
        raise _no_weights(name, str(folder))
    return folder


def _no_weights(name: str, place: str) -> BasiscopeError:
    return BasiscopeError(
        f"Model {name}: {place} has no *.safetensors weights. Pickled weights (.bin, .pt) are never "
        "loaded; convert them with `save_pretrained(..., safe_serialization=True)`."
    )


def _snapshot(name: str, revision: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": [pattern for pattern in MODEL_FILES if weights or pattern != WEIGHTS],
        "ignore_patterns": list(NOT_MODEL_FILES),
    }
    at = f" at revision {revision}" if revision else ""
    cached: Path | None = None
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **options))
        if _is_whole(cached, weights) and (_has_tokenizer(cached) or is_adapter(cached)):
            return cached
    except HFValidationError as error:
        raise BasiscopeError(
            f"Model {name!r} is neither a folder here nor a hub id like 'owner/model'."
        ) from error
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, **options))
    except HfHubHTTPError as error:
        reason = str(error).splitlines()[0]
        raise BasiscopeError(f"Model {name}{at}: the hub refused it ({reason}).") from error
    except (OSError, RuntimeError) as error:
        if cached and _is_whole(cached, weights):
            return cached
        raise BasiscopeError(
            f"Model {name}{at} is not in the local cache and the hub cannot be reached. Give a local "
            "folder, or download the model where there is a network."
        ) from error


def _is_whole(folder: Path, weights: bool) -> bool:
    if is_adapter(folder):
        return not weights or next(folder.glob(WEIGHTS), None) is not None
    is_there = not weights or (has_weights(folder) and _has_all_shards(folder))
    return is_there and (folder / "config.json").is_file()


def _has_tokenizer(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def stored_bytes(name: str, revision: str | None = None) -> int:
    """The size of the model's weight files; the hub is asked where they are not here. Raises as `locate_model`."""
    folder = locate_model(name, revision, weights=False)
    if is_adapter(own := _own_folder(name, revision, weights=False)):
        name, revision = adapter_base(own, name)
    if is_folder(name) or (has_weights(folder) and _has_all_shards(folder)):
        return sum(path.stat().st_size for path in folder.glob(WEIGHTS) if not path.match("adapter_*"))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        files = HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BasiscopeError(f"Model {name}: the hub does not tell its size ({reason}).") from error
    sizes = [
        file.size or 0
        for file in files
        if PurePath(file.rfilename).parent == PurePath()
        and PurePath(file.rfilename).match(WEIGHTS)
        and not file.rfilename.startswith("consolidated")
    ]
    if not sizes:
        raise _no_weights(name, "the hub")
    return sum(sizes)


def _has_all_shards(folder: Path) -> bool:
    return all((folder / shard).exists() for shard in weight_map(folder, str(folder)).values())


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of the model's files, so that two copies of one model agree. An adapter
    beside a model is not part of it."""
    digest, ignored = hashlib.sha256(), ["consolidated*"] + ["adapter_*"] * has_weights(folder)
    for path in sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)}):
        if not any(path.match(pattern) for pattern in ignored) and path.is_file():
            digest.update(f"{path.name} {_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _fingerprint(folder: Path, adapter: Path | None) -> str:
    """Of a model, with the adapter that is merged into it."""
    if adapter is None:
        return model_fingerprint(folder)
    both = f"{model_fingerprint(folder)} {model_fingerprint(adapter)}"
    return hashlib.sha256(both.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", blob):
        return blob  # the hub cache names a weight file's blob by its SHA-256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_device(device: str = "auto") -> str:
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise BasiscopeError(f"Device {device!r} cannot be used ({reason}); try --device auto.") from error
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_dtype(dtype: str = "auto", device: str = "cpu") -> str:
    """bfloat16 where the hardware multiplies it natively, else float32 (an emulated bf16 is slower)."""
    if dtype not in DTYPES:
        raise BasiscopeError(f"Data type {dtype!r} is not one of {', '.join(DTYPES)}.")
    if dtype != "auto":
        return dtype
    import torch

    if device.startswith("cuda"):
        native = torch.cuda.get_device_capability()[0] >= 8
    else:
        native = device == "cpu" and bool(_cpu_bf16())
    return "bfloat16" if native else "float32"


def _cpu_bf16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@contextmanager
def _loading(name: str, config: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turns whatever transformers raises on files that it cannot load into a BasiscopeError, but for a lack of
    memory, of which the command tells; where only the `config` was read, its fields are named."""
    try:
        yield
    except BasiscopeError:
        raise
    except ImportError as error:  # of a quantised model
        said = " ".join(str(error).split())
        raise BasiscopeError(f"Model {name}: it needs a package that is not here. {said}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = reason(error) if config is None else f"config.json: {with_fields(config, reason(error))}"
        raise cannot_load(name, said) from error


def load_config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration of a decoder-only model. Raises BasiscopeError where it cannot be read, holds what cannot
    be meant or is of another kind."""
    written = check_objects(folder, name)
    from transformers import AutoConfig

    with _loading(name, written):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise cannot_load(name, f"{config.model_type} is an encoder-decoder, Basiscope needs a decoder-only model")
    return config


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer alone, without the weights, of an adapter its own where it has one. Raises as `locate_model`
    does."""
    folder, own = locate_model(name, revision, weights=False), _own_folder(name, revision, weights=False)
    return _tokenizer(own if _has_tokenizer(own) else folder, name)


def _tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    check_tokenizer_files(folder, name)
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if not _has_tokenizer(folder):
            why = FileNotFoundError(f"the folder has none of {', '.join(TOKENIZER_FILES)}")
            raise damaged_tokenizer(folder, name, why) from error
        raise damaged_tokenizer(folder, name, error) from error
    files = tokenizer.vocab_files_names.values()
    if files and not any((folder / file).is_file() for file in files):
        wanted = FileNotFoundError(f"{folder} has none of its files {', '.join(files)}")
        raise damaged_tokenizer(folder, name, wanted)
    return tokenizer


def check_tokens(model: LanguageModel, ids: Sequence[int], where: str) -> None:
    """Raises BasiscopeError where a token of the text `where` is beyond the model's embedding."""
    if (largest := max(ids, default=0)) >= model.vocabulary:
        tokenizer: Any = model.tokenizer
        raise BasiscopeError(
            f"{where} has the token {tokenizer.convert_ids_to_tokens(int(largest))!r}, number {largest}, but the "
            f"embedding of model {model.name} has {model.vocabulary:,} rows. Its tokenizer, of {len(tokenizer):,} "
            "tokens, is of another model, or the embedding was not resized to it."
        )


def load_model(name: str, revision: str | None = None, dtype: str = "auto", device: str = "auto") -> LanguageModel:
    """Load from a local folder, the local cache or the hub, in that order, ready for inference. A PEFT adapter is
    merged into the model that it was made for.

    A model larger than the first GPU's free memory is spread over all devices (`device_map="auto"`).
    Raises BasiscopeError where files are missing or broken, weights are incomplete, do not fit the config or are
    not finite, or the architecture needs code from the hub.
    """
    folder = locate_model(name, revision)  # before the imports, which take seconds
    own = _own_folder(name, revision, weights=True)
    adapter = own if is_adapter(own) else None
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    spread = False
    config = load_config(folder, name)
    tokenizer = _tokenizer(own if _has_tokenizer(own) else folder, name)
    stored = _checked_weights(folder, config, name)
    if device == "cuda":
        spread = weight_bytes(stored_bytes(name, revision), config, dtype) > 0.9 * torch.cuda.mem_get_info()[0]
    with ThreadPoolExecutor(1) as beside:  # to read all files takes as long as to load them
        fingerprint = beside.submit(_fingerprint, folder, adapter)
        module = _loaded(folder, config, dtype, spread, stored, name)
        if adapter:
            with _loading(name):
                module = merged(module, adapter, name)
        module = module.eval().requires_grad_(False)
        if not spread:
            module = _moved(module, device, name)
        check_finite(module, name, dtype)
    commit = revision if is_folder(name) else own.name  # a hub snapshot's folder is named by its commit
    base = adapter_base(adapter, name)[0] if adapter else None
    notes = _notes(folder, name, base)
    model = LanguageModel(name, commit, fingerprint.result(), module, tokenizer, find_blocks(module), base, notes)
    with _loading(name, config.to_dict()):  # what is built may still not run
        tokens = torch.zeros(1, FIRST_TOKENS, dtype=torch.long, device=model.device)
        run_blocks(model, {"input_ids": tokens}, (0,), lambda _block, _hidden: None)
    return model


def _checked_weights(folder: Path, config: PreTrainedConfig, name: str) -> Stored:
    """What the weight files hold, by their headers. Raises BasiscopeError where a model of this config, built
    without weights, has other tensors or no list of blocks."""
    import torch

    stored = stored_tensors(folder, name)
    with _loading(name, config.to_dict()), no_larger_than(stored, folder, name), torch.device("meta"):
        empty = _auto_class(config).from_config(config)
    find_blocks(empty)
    with _loading(name, config.to_dict()):
        check_weights(empty, stored, name)
    return stored


def _loaded(
    folder: Path, config: PreTrainedConfig, dtype: str, spread: bool, stored: Stored, name: str
) -> PreTrainedModel:
    """The model by its own weights, wherever an adapter lies beside them."""
    import torch

    with _loading(name), without_adapter(folder) as alone:
        loaded: Any = _auto_class(config).from_pretrained(
            alone,
            config=config,
            dtype=getattr(torch, dtype),
            device_map="auto" if spread else None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        module, info = loaded
        check_loaded(config, info, name, stored)
        return module


def _notes(folder: Path, name: str, base: str | None) -> tuple[str, ...]:
    if base:
        return (f"the model is {base} with the PEFT adapter {name} merged into it",)
    if (folder / ADAPTER).is_file():
        return (f"the PEFT adapter beside the model's own weights ({ADAPTER}) is not applied",)
    return ()


def _auto_class(config: PreTrainedConfig) -> Any:
    """The class that loads a causal model of this kind, be it the text model within one that sees pictures."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    kind = type(config)
    is_wrapper = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if is_wrapper else AutoModelForCausalLM


def randomised(model: LanguageModel, seed: int, keep_embeddings: bool = False) -> LanguageModel:
    """A copy of the model that has learnt nothing: initialised anew by its own architecture, all of it or, with
    `keep_embeddings`, all but the token embeddings."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _auto_class(model.module.config).from_config(model.module.config, dtype=model.module.dtype)
    if keep_embeddings:
        module.get_input_embeddings().load_state_dict(model.module.get_input_embeddings().state_dict())
    module = module.eval().requires_grad_(False).to(model.device)
    kind = "random blocks" if keep_embeddings else "random"
    return replace(
        model, name=f"{model.name} ({kind} {seed})", fingerprint="", module=module, blocks=find_blocks(module)
    )


def _moved(module: PreTrainedModel, device: str, name: str) -> PreTrainedModel:
    import torch

    try:
        return module.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise BasiscopeError(
            f"Model {name} does not fit into the memory of {device}; try --dtype bfloat16 or --device cpu."
        ) from error


def free_memory() -> None:
    """Give what a model no longer in use has held back to the device, whose free memory decides where the next
    model goes."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that there is not enough memory, on the device or beside it."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def weight_bytes(stored: int, config: PreTrainedConfig, dtype: str) -> int:
    """The size in memory of weights that take `stored` bytes of files, once they are loaded as `dtype`."""
    import torch

    width = config.dtype.itemsize if isinstance(config.dtype, torch.dtype) else torch.float32.itemsize
    return stored * getattr(torch, dtype).itemsize // width


def find_blocks(module: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers: the outermost module list with as many members as the config has layers.

    Raises BasiscopeError where there is none, or where its attention looks ahead, as in an encoder: then
    padding on the right would not be harmless.
    """
    from torch import nn

    depth = getattr(module.config.get_text_config(), "num_hidden_layers", None)
    found = [
        (name.count("."), part)
        for name, part in module.get_decoder().named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == depth
    ]
    kind = f"Model of type {module.config.model_type}"
    if not found:
        raise BasiscopeError(f"{kind}: no list of {depth} decoder layers in it, which Basiscope needs.")
    blocks = min(found, key=lambda item: item[0])[1]
    if any(getattr(part, "is_causal", True) is False for part in blocks.modules()):
        raise BasiscopeError(f"{kind}: its tokens attend to later ones, Basiscope needs a decoder-only model.")
    return blocks


def _written_blocks(blocks: str) -> re.Match[str]:
    match = re.fullmatch(r"(-?\d*):(-?\d*)|(-?\d+)", blocks.strip())
    if not match or "-" in (match[1], match[2]):
        raise BasiscopeError(f"Blocks {blocks!r}: write a range such as 1:-1, or one block such as 15.")
    return match


def check_blocks(blocks: str) -> None:
    """Raises BasiscopeError where `resolve_blocks` cannot read it, whatever the model."""
    if blocks.strip() != "middle":
        _written_blocks(blocks)


def resolve_blocks(blocks: str, n_blocks: int) -> tuple[int, ...]:
    """Block numbers from `a:b` (as a Python slice, negative from the end), one number such as `15`, or
    `middle` (block 15 of 32, as published for the safety recipe).

    >>> resolve_blocks("1:-1", 5)
    (1, 2, 3)
    """
    if blocks.strip() == "middle":
        return (n_blocks // 2 - 1,) if n_blocks > 1 else (0,)
    match = _written_blocks(blocks)
    chosen: tuple[int, ...]
    if match[3] is not None:
        index = int(match[3])
        chosen = (index % n_blocks,) if -n_blocks <= index < n_blocks else ()
    else:
        start, stop = (int(part) if part else None for part in (match[1], match[2]))
        chosen = tuple(range(n_blocks)[start:stop])
    if not chosen:
        raise BasiscopeError(f"Blocks {blocks!r}: the model has blocks 0 to {n_blocks - 1}, none is chosen.")
    return chosen


def block_output(output: Any) -> torch.Tensor:
    """The residual stream (batch, tokens, hidden) from what a block returned: a tensor, or a tuple or list that
    starts with it in older models (`output[0]` of a bare tensor would silently be batch row 0). Of the parallel
    streams (streams, batch, tokens, hidden) of Gemma 3n's AltUp, the first is the one that its layers compute on
    (arXiv 2301.13310)."""
    first = output[0] if isinstance(output, tuple | list) else output
    return first[0] if first.ndim == 4 else first


def with_block_output(output: Any, hidden: torch.Tensor) -> Any:
    """What a block returned, with another residual stream."""
    import torch

    if isinstance(output, tuple | list):
        return type(output)([with_block_output(output[0], hidden), *output[1:]])
    return torch.cat([hidden[None], output[1:]]) if output.ndim == 4 else hidden


CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "state")
"""What models call the cache that they take and return: transformers from 5.24 on, before, Mambas before, RWKV."""


def named_arguments(module: nn.Module) -> frozenset[str]:
    """What `module.forward` names: anything else it may swallow without a word."""
    return frozenset(inspect.signature(module.forward).parameters)


def cache_argument(module: nn.Module) -> str | None:
    """The name under which `module.forward` takes a cache, None where it names none."""
    named = named_arguments(module)
    return next((name for name in CACHE_ARGUMENTS if name in named), None)


def embedding_rows(module: PreTrainedModel) -> int:
    """The number of tokens that the model has vectors for."""
    weight: Any = module.get_input_embeddings().weight
    return int(weight.shape[0])


def named_options(module: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of the options that `module.forward` names."""
    named = named_arguments(module)
    return {name: value for name, value in options.items() if name in named}


def cached_tokens(cache: Any) -> int | None:
    """The number of tokens that a cache holds of every row, None where it does not tell (a recurrent state)."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):
        return None


class _Finished(Exception):
    """Raised by the hook of the last block needed, so that nothing after it runs."""


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_blocks(
    model: LanguageModel, inputs: dict[str, torch.Tensor], blocks: tuple[int, ...], receive: Any
) -> None:
    """Run the trunk on `inputs`, without a cache unless they hold one, and without logits. Calls
    `receive(block, hidden)` after each of `blocks` (ascending) with its output (batch, tokens, hidden). Nothing
    after the last of them runs."""
    import torch

    def hook_for(block: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            receive(block, block_output(output))
            if block == blocks[-1]:
                raise _Finished

        return hook

    handles = [model.blocks[block].register_forward_hook(hook_for(block)) for block in blocks]
    with _hooks(handles), torch.inference_mode(), suppress(_Finished):
        decoder = model.module.get_decoder()
        decoder(**{**named_options(decoder, use_cache=False), **inputs})


def find_local_models(folders: list[Path]) -> list[str]:
    """Model folders directly in or one level below `folders`, and the hub models in the local cache. What may not
    be looked at is passed over."""
    from huggingface_hub.constants import HF_HUB_CACHE

    candidates = [path for root in folders for path in (root, *_found(root, "*/"))]
    local = [str(path) for path in candidates if _says_model(path) and _found(path, WEIGHTS)]
    cached = {
        snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")
        for snapshot in _found(Path(HF_HUB_CACHE), "models--*/snapshots/*")
        if _found(snapshot, WEIGHTS)
    }
    return sorted(set(local)) + sorted(cached)


def _says_model(folder: Path) -> bool:
    return is_seen_file(folder / "config.json") or is_seen_file(folder / ADAPTER)


def _found(folder: Path, pattern: str) -> list[Path]:
    """What the pattern finds in a folder: nothing in one that may not be looked at."""
    with suppress(OSError):
        return list(folder.glob(pattern))
    return []
