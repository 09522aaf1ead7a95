"""What every format can carry, how it is written, and how it is loaded again."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import BasiscopeError
from core.model import LanguageModel, block_output, load_model, locate_model, with_block_output

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMATS = ("checkpoint", "peft", "gguf", "vector")
NOT_COPIED = {"transformers_version", "architectures", "model_type", "layer_types", "_name_or_path"}
NOT_COPIED |= {"id2label", "label2id", "problem_type"}
"""Of the config of a model that is rewritten as a Llama: what is not so of a Llama, or of this machine."""
LLAMA_CPP = "as in llama-cpp-python 0.3.36"
LLAMA_CPP_STEERS = frozenset(
    [
        "bloom",
        "cohere",
        "cohere2",
        "falcon",
        "falcon_h1",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "jamba",
        "llama",
        "mamba",
        "mistral",
        "mixtral",
        "olmo2",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_text",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    ]
)
"""Model types in whose graph that source adds a control vector (`build_cvec`) to the sum that leaves a block.
Where a graph has none, llama.cpp ignores a vector: before March 2026 for Qwen3.5 and Qwen3-Next (#20541, #20653),
there for PLaMo-2 (#21444). For Gemma 3n it adds it to every stream."""
SNIPPET = """\
from safetensors.torch import load_file
for name, vector in load_file("vector.safetensors").items():
    blocks[int(name)].register_forward_hook(lambda _m, _a, out, v=vector: out + v.to(out) if hasattr(out, "to") \
else type(out)([out[0] + v.to(out[0]), *out[1:]]))
"""
"""`blocks` are the model's decoder layers, such as `model.model.layers`."""


@dataclass(frozen=True)
class Layer:
    """The layer whose bias is added to the residual stream, times `factor`, and how a checkpoint keeps its bias:
    `native` it always has one, `mlp_bias` where the config says so, `llama` if rewritten as a Llama, or `no`."""

    path: str
    keeps: str
    factor: float = 1.0


def steerable_layer(config: Any) -> Layer:
    """Raises BasiscopeError with the reason where no bias is the same as steering."""
    kind = config.model_type
    layers = {
        "llama": Layer("mlp.down_proj", "mlp_bias"),
        "smollm3": Layer("mlp.down_proj", "mlp_bias"),
        "granite": Layer("mlp.down_proj", "mlp_bias", getattr(config, "residual_multiplier", 1.0)),
        "qwen2": Layer("mlp.down_proj", "llama"),
        "mistral": Layer("mlp.down_proj", "llama"),
        "qwen3": Layer("mlp.down_proj", "no"),
        "phi3": Layer("mlp.down_proj", "no"),
        "gpt2": Layer("mlp.c_proj", "native"),
        "gpt_neox": Layer("mlp.dense_4h_to_h", "native"),
        "opt": Layer("fc2", "native" if getattr(config, "enable_bias", True) else "no"),
        "falcon": Layer("mlp.dense_4h_to_h", "native" if getattr(config, "bias", False) else "no"),
    }
    reasons = {
        "gemma2": "it normalises after the MLP",
        "gemma3": "it normalises after the MLP",
        "gemma3_text": "it normalises after the MLP",
        "olmo2": "it normalises after the MLP",
        "mixtral": "its MLP is a mixture of experts, which has no such layer",
    }
    if kind == "opt" and not config.do_layer_norm_before:
        reasons["opt"] = "this one normalises after the MLP"
    if reason := reasons.get(kind):
        raise BasiscopeError(f"Model of type {kind}: {reason}, so a bias there is not the same as steering.")
    if kind not in layers:
        raise BasiscopeError(f"Model of type {kind}: it is not known where a bias would equal steering.")
    return layers[kind]


def has_bias(model: LanguageModel) -> bool:
    """Whether the layer that would steer has a bias. Raises BasiscopeError as `steerable_layer` does."""
    part: Any = model.blocks[0].get_submodule(steerable_layer(model.module.config).path)
    return part.bias is not None


# --- writing --------------------------------------------------------------------------------------------


def writer_for(model: LanguageModel, vectors: Mapping[int, np.ndarray], kind: str) -> Callable[[Path], None]:
    """What writes the format, once it is sure that it can carry the vectors. Raises BasiscopeError with the
    reason and the formats that do work."""
    config = model.module.config
    if kind == "vector":
        return lambda folder: _write_vector(folder, vectors)
    if kind == "gguf":
        if 0 in vectors:
            raise BasiscopeError(
                "Format gguf: llama.cpp has no control vector for block 0, which this run's directions cover; "
                "recover with --blocks 1:-1, or use --format vector."
            )
        return lambda folder: _write_gguf(folder, vectors, config.model_type)
    if model.base:
        raise BasiscopeError(
            f"Format {kind}: {model.name} is a PEFT adapter of {model.base}; what is steered must be one: save "
            f"the two merged, and recover that. {_others(vectors)}"
        )
    try:
        layer = steerable_layer(config)
    except BasiscopeError as error:
        raise BasiscopeError(f"Format {kind}: {error} {_others(vectors)}") from error
    biases = {block: vector / np.float32(layer.factor) for block, vector in vectors.items()}
    paths = {id(part): name for name, part in model.module.named_modules()}
    names = {block: f"{paths[id(part)]}.{layer.path}" for block, part in enumerate(model.blocks)}
    if kind == "peft":
        widths = {names[block]: _width(model.module.get_submodule(names[block])) for block in biases}
        base, is_conv = (model.name, model.revision), config.model_type == "gpt2"
        by_name = {names[block]: bias for block, bias in biases.items()}
        return lambda folder: _write_peft(folder, base, by_name, widths, is_conv)
    source = locate_model(model.name, model.revision)
    changed = _new_config(config, layer, json.loads((source / "config.json").read_text()))
    if changed is None:
        reason = {
            "mistral": "with a sliding window it cannot be written as a Llama",
            "qwen2": "with a sliding window it cannot be written as a Llama",
        }.get(config.model_type, "its architecture has no bias there, and would drop it without a word")
        raise BasiscopeError(
            f"Format checkpoint: model of type {config.model_type}: {reason}. --format peft carries it exactly. "
            f"{_others(vectors)}"
        )
    return lambda folder: _write_checkpoint(folder, source, changed, layer, names, biases)


@contextmanager
def biased(model: LanguageModel, vectors: Mapping[int, np.ndarray]) -> Iterator[None]:
    """Within the block the model has the vectors (block -> raw units) as biases in memory, and so computes as the
    checkpoint does. Raises BasiscopeError where no bias is the same as steering."""
    import torch

    layer = steerable_layer(model.module.config)
    parts: dict[int, Any] = {block: model.blocks[block].get_submodule(layer.path) for block in vectors}
    before = {block: part.bias for block, part in parts.items()}
    try:
        for block, part in parts.items():
            added = torch.from_numpy(vectors[block] / np.float32(layer.factor)).to(part.weight.device)
            whole = added if part.bias is None else part.bias.float() + added
            part.bias = torch.nn.Parameter(whole.to(part.weight.dtype), requires_grad=False)
        yield
    finally:
        for block, part in parts.items():
            part.bias = before[block]


def _others(vectors: Mapping[int, np.ndarray]) -> str:
    works = ["vector"] if 0 in vectors else ["gguf", "vector"]
    return f"What can be written for any model: {' and '.join(f'--format {name}' for name in works)}."


def _new_config(config: Any, layer: Layer, stored: dict[str, Any]) -> dict[str, Any] | None:
    """The config of the steered checkpoint from the one `stored` with the model, or None where its architecture
    cannot keep the bias."""
    if layer.keeps == "native":
        return stored
    if layer.keeps == "mlp_bias":
        return stored | {"mlp_bias": True}
    if layer.keeps == "no" or getattr(config, "sliding_window", None) is not None:
        return None
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return None
    from transformers import LlamaConfig

    known = set(LlamaConfig().to_dict()) - NOT_COPIED
    whole = config.to_dict()
    kept = {key: value for key, value in whole.items() if key in known}
    heads = whole["hidden_size"] // whole["num_attention_heads"]
    return (
        kept
        | _for_older_readers(stored, whole.get("rope_parameters") or {})
        | {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": config.model_type == "qwen2",
            "mlp_bias": True,
            "head_dim": whole.get("head_dim") or heads,
        }
    )


def _for_older_readers(stored: Mapping[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers 4 and other readers look for under names of their own; without them they would take
    another base of the rotary positions, without a word."""
    dtype = stored.get("dtype", stored.get("torch_dtype"))
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    is_scaled = scaling.get("rope_type", "default") != "default"
    return {
        "dtype": dtype,
        "torch_dtype": dtype,
        "rope_theta": stored.get("rope_theta", rope.get("rope_theta")),
        "rope_scaling": stored.get("rope_scaling", scaling if is_scaled else None),
    }


def _write_checkpoint(
    folder: Path,
    source: Path,
    config: Mapping[str, Any],
    layer: Layer,
    names: Mapping[int, str],
    biases: Mapping[int, np.ndarray],
) -> None:
    """Copy the shards one by one, changing the biases that are there, and put the new ones into one more."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    shards = sorted(path for path in source.glob("*.safetensors") if not path.match("consolidated*"))
    weight_map: dict[str, str] = {}
    dtype = torch.float32
    total = 0
    n_files = len(shards) + (layer.keeps != "native")
    additions = {f"{names[block]}.bias": vector for block, vector in biases.items()}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{n_files:05d}.safetensors"
        with safe_open(shard, framework="pt") as file:
            keys = list(file.keys())
            stored = {_found(key, keys): key for key in additions if _found(key, keys)}
            for key in keys:
                total += _bytes(file.get_slice(key))
            if some := next((key for key in keys if key.endswith(f"{layer.path}.weight")), None):
                dtype = file.get_tensor(some).dtype
            if stored:
                tensors = {key: file.get_tensor(key) for key in keys}
                for key, addition in stored.items():
                    added = tensors[key].float() + torch.from_numpy(additions.pop(addition))
                    tensors[key] = added.to(tensors[key].dtype)
                save_file(tensors, folder / name, metadata={"format": "pt"})
        if not stored:
            shutil.copyfile(shard, folder / name)
        weight_map |= dict.fromkeys(keys, name)
    new = {}
    if layer.keeps != "native":
        new = _new_biases(folder, weight_map, config, layer, names, dtype)
        for key, vector in additions.items():
            new[key] = torch.from_numpy(vector).to(dtype)
    elif additions:
        raise BasiscopeError(f"Model {source}: its files have no {next(iter(additions))}.")
    last = f"model-{n_files:05d}-of-{n_files:05d}.safetensors"
    if new:
        save_file(new, folder / last, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(new, last)
        total += sum(tensor.nbytes for tensor in new.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    for path in source.iterdir():
        small = path.is_file() and path.suffix in (".json", ".model", ".txt", ".jinja")
        if small and not (folder / path.name).exists() and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)


def _found(name: str, keys: Sequence[str]) -> str | None:
    """The key that means `name`: some files leave out the model's own prefix, as GPT-2's do."""
    return next((key for key in keys if key == name or name.endswith(f".{key}")), None)


def _bytes(part: Any) -> int:
    widths = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}
    return int(np.prod(part.get_shape())) * widths.get(part.get_dtype(), 1)


def _new_biases(
    folder: Path,
    weight_map: Mapping[str, str],
    config: Mapping[str, Any],
    layer: Layer,
    names: Mapping[int, str],
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Zeros for every bias that the new config brings along and the files do not have."""
    import torch
    from safetensors import safe_open

    parts = [layer.path, "mlp.gate_proj", "mlp.up_proj"]
    if config.get("attention_bias"):
        parts += [f"self_attn.{name}_proj" for name in "qkvo"]
    new = {}
    for name in names.values():
        stem = name.removesuffix(layer.path)
        for part in parts:
            weight = f"{stem}{part}.weight"
            if f"{stem}{part}.bias" not in weight_map and weight in weight_map:
                with safe_open(folder / weight_map[weight], framework="pt") as file:
                    rows = file.get_slice(weight).get_shape()[0]
                new[f"{stem}{part}.bias"] = torch.zeros(rows, dtype=dtype)
    return new


def _width(layer: Any) -> int:
    """The number of inputs of a linear layer, or of GPT-2's transposed one."""
    return int(getattr(layer, "in_features", None) or layer.weight.shape[0])


def _write_peft(
    folder: Path,
    base: tuple[str, str | None],
    biases: Mapping[str, np.ndarray],
    widths: Mapping[str, int],
    is_conv: bool,
) -> None:
    """A LoRA of rank 1 whose product is zero and whose B has the bias: exact wherever the bias is. `base` is the
    model's name and revision; `biases` and `widths`, the numbers of inputs, by the layers' full names."""
    from peft import LoraConfig
    from safetensors.numpy import save_file

    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(biases),
        lora_bias=True,
        fan_in_fan_out=is_conv,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base[0],
        revision=base[1],
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {}
    for name, bias in biases.items():
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = np.zeros((1, widths[name]), np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.zeros((len(bias), 1), np.float32)
        tensors[f"{stem}.lora_B.bias"] = bias
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_gguf(folder: Path, vectors: Mapping[int, np.ndarray], model_type: str) -> None:
    """A llama.cpp control vector: `direction.N` is added to the output of block N, never 0."""
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "vector.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for block, vector in vectors.items():
        writer.add_tensor(f"direction.{block}", np.ascontiguousarray(vector, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vector(folder: Path, vectors: Mapping[int, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file({str(block): vector for block, vector in vectors.items()}, folder / "vector.safetensors")
    listed = {str(block): [float(x) for x in vector] for block, vector in vectors.items()}
    (folder / "vector.json").write_text(json.dumps({"adds_to_output_of_block": listed}))


# --- loading it again -----------------------------------------------------------------------------------


def _reload_checkpoint(
    folder: Path, load: Callable[[], LanguageModel], dtype: str, device: str
) -> PreTrainedModel:
    return load_model(str(folder), dtype=dtype, device=device).module


def _reload_peft(folder: Path, load: Callable[[], LanguageModel], dtype: str, device: str) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base layers have no bias of their own is why this is here
        return PeftModel.from_pretrained(load().module, str(folder)).eval()


def _reload_gguf(folder: Path, load: Callable[[], LanguageModel], dtype: str, device: str) -> PreTrainedModel:
    """Read as llama.cpp does: `direction.N` is added to the output of block N."""
    import torch
    from gguf import GGUFReader

    model = load()
    for tensor in GGUFReader(folder / "vector.gguf").tensors:
        vector = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
        model.blocks[int(tensor.name.removeprefix("direction."))].register_forward_hook(_adding(vector))
    return model.module


def _adding(vector: torch.Tensor) -> Any:
    def hook(_block: Any, _args: Any, output: Any) -> Any:
        return with_block_output(output, block_output(output) + vector.to(block_output(output)))

    return hook


def _reload_vector(folder: Path, load: Callable[[], LanguageModel], dtype: str, device: str) -> PreTrainedModel:
    """By the very lines that the card gives."""
    model = load()
    here = SNIPPET.replace('"vector.safetensors"', repr(str(folder / "vector.safetensors")))
    exec(here, {"blocks": model.blocks})
    return model.module


Reload = Callable[[Path, Callable[[], LanguageModel], str, str], Any]
"""Called as reload(folder, load, dtype, device): the steered module; `load` gives the run's own model."""
RELOAD: dict[str, Reload] = {
    "checkpoint": _reload_checkpoint,
    "peft": _reload_peft,
    "gguf": _reload_gguf,
    "vector": _reload_vector,
}
