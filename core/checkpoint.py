"""Take the steering away: write it in a form that other tools load, and prove that it steers there.

Adding a vector to the output of a block equals a bias of the last layer of its MLP where that layer's output is
added to the residual stream as it is. A checkpoint keeps such a bias only where the architecture has the
parameter; others drop it without an error and serve the unsteered model. So nothing is called done before it has
been loaded again and compared with the live hook on real prompts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import BasiscopeError
from core.model import LanguageModel, block_output, locate_model
from core.steering.generation import Generation, Row, Sampling, encode_prompt
from core.steering.intervention import Directions, Steering
from core.steering.prompts import run_prompts
from core.workspace import Run, is_disk_full, now

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

FORMATS = ("checkpoint", "peft", "gguf", "vector")
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 256, 32
TOLERANCE = {"float32": (1e-3, 2e-5), "bfloat16": (0.2, 0.05), "float16": (0.05, 0.01)}
"""By how much the reloaded logits may differ from the live hook's: as a share of the largest change that steering
makes, and of the largest logit. The rounding of the data type; a lost vector differs by all of the first."""
SNIPPET = """\
from safetensors.torch import load_file
for name, vector in load_file("vector.safetensors").items():
    blocks[int(name)].register_forward_hook(lambda _m, _a, out, v=vector: (out[0] + v.to(out[0]), *out[1:]) \
if isinstance(out, tuple) else out + v.to(out))
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


@dataclass(frozen=True)
class Agreement:
    """The reloaded export against the live hook, over prompts and the live text that follows them.

    difference: largest absolute difference of logits; effect: that of the live hook from the unsteered model;
    largest: largest logit; same_text: of `prompts` prompts, how many give the same greedy text of NEW_TOKENS
    """

    difference: float
    effect: float
    largest: float
    same_text: int
    prompts: int
    dtype: str

    @property
    def holds(self) -> bool:
        of_effect, of_largest = TOLERANCE[self.dtype]
        close = self.difference <= of_effect * self.effect + of_largest * self.largest
        visible = self.effect > 2 * of_largest * self.largest
        return close and visible and (self.same_text == self.prompts or self.dtype != "float32")

    def __str__(self) -> str:
        return (
            f"largest logit difference from the live hook {self.difference:.2g}, where steering moves a logit by "
            f"up to {self.effect:.2g} and the largest is {self.largest:.3g}; same greedy text of {NEW_TOKENS} "
            f"tokens for {self.same_text} of {self.prompts} prompts ({self.dtype})"
        )


def export(
    run: Run, load: Callable[[], LanguageModel], direction: int, strength: float, kind: str, out: Path
) -> Agreement:
    """Write direction (from 1) at `strength`, a multiple of the unit direction, to the new folder `out`.

    `load` gives the run's model anew each time; no two are held at once. Raises BasiscopeError where the format
    cannot carry it for this model, where `out` is there and not empty, and where the export, loaded again,
    does not steer as the live hook does; then nothing is left behind.
    """
    if kind not in FORMATS:
        raise BasiscopeError(f"Format {kind!r} is not one of {', '.join(FORMATS)}.")
    if not np.isfinite(strength) or strength == 0:
        raise BasiscopeError(f"Strength {strength:g}: there is nothing to export.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BasiscopeError(f"Folder {out} is there and not empty; give a new one.")
    directions = Directions.of(run)
    vectors = {block: directions.vector(direction, strength, block) for block in directions.blocks}
    model = load()
    write = _writer(model, vectors, kind)
    expected = _observe(model, run, directions, Steering(((direction, strength),)))
    dtype = model.dtype
    card = _card(run, model, direction, strength, kind)
    del model
    with _new_folder(out) as folder:
        write(folder)
        reload = {"checkpoint": _reload_checkpoint, "peft": _reload_peft, "gguf": _reload_gguf}
        steered_module = reload.get(kind, _reload_vector)(folder, load, dtype)
        agreement = _agreement(expected, steered_module, dtype)
        del steered_module
        if not agreement.holds:
            raise BasiscopeError(
                f"The export, loaded again, does not steer as the live hook does ({agreement}); nothing is kept. "
                "A larger strength may show more than rounding; --format vector always works."
            )
        facts = asdict(agreement) | {"direction": direction, "strength": strength, "format": kind, "run": run.id}
        (folder / "basiscope.json").write_text(json.dumps(facts, indent=2) + "\n")
        (folder / "README.md").write_text(card + f"\n## Checked\nLoaded again and compared: {agreement}.\n")
    return agreement


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that is renamed to it at the end; nothing is left behind where that is not reached."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        with suppress(FileNotFoundError):
            out.rmdir()
        temporary.rename(out)
    except Exception as error:
        if not isinstance(error, BasiscopeError) and is_disk_full(error):
            raise BasiscopeError(f"The disk of {out} is full; free some space, or give another folder.") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- what the live hook does ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Expected:
    """Per prompt: token ids of prompt and live greedy text, length of the prompt, steered logits on all of it."""

    texts: list[tuple[int, ...]]
    starts: list[int]
    logits: list[torch.Tensor]
    effect: float


def _observe(model: LanguageModel, run: Run, directions: Directions, steering: Steering) -> _Expected:
    from core.steering.intervention import steered

    columns, template = run.manifest["data"]["columns"], run.manifest["recipe"]["template"]
    room = min(NEW_TOKENS, (model.context or 10**9) // 2)
    prompts = [
        ids
        for text in run_prompts(run, 10 * PROMPTS)
        if len(ids := _encoded(model, text, columns, template, room)) in range(1, PROMPT_TOKENS)
    ][:PROMPTS]
    if not prompts:
        raise BasiscopeError(f"Run {run.id}: none of its prompts is short enough to compare the export on.")
    texts, logits, effect = [], [], 0.0
    for prompt in prompts:
        generation = Generation(model, directions, [Row(prompt, steering)], Sampling(room)).run()
        if generation.ended[0] == "not a number":
            raise BasiscopeError(f"Strength {steering.strengths[0][1]:g}: {generation.note(0)}.")
        ids = (*prompt, *generation.tokens[0])
        with steered(model, directions, steering):
            moved = _logits(model.module, ids)
        effect = max(effect, float((moved - _logits(model.module, ids)).abs().max()))
        texts.append(ids)
        logits.append(moved)
    return _Expected(texts, [len(prompt) for prompt in prompts], logits, effect)


def _encoded(
    model: LanguageModel, text: str, columns: Mapping[str, str], template: str, room: int
) -> tuple[int, ...]:
    try:
        return encode_prompt(model, text, columns, template, room)
    except BasiscopeError:
        return ()


def _logits(module: Any, ids: Sequence[int]) -> torch.Tensor:
    """(tokens, vocabulary) float32 on the CPU."""
    import torch

    with torch.inference_mode():
        device = module.get_input_embeddings().weight.device
        return module(torch.tensor([list(ids)], device=device), use_cache=False).logits[0].float().cpu()


def _agreement(expected: _Expected, module: Any, dtype: str) -> Agreement:
    """Teacher-forced on the live text: where every token of it is the reloaded model's first choice, its own
    greedy text is the same."""
    difference, same = 0.0, 0
    for ids, start, logits in zip(expected.texts, expected.starts, expected.logits, strict=True):
        found = _logits(module, ids)
        difference = max(difference, float((found - logits).abs().nan_to_num(nan=np.inf).max()))
        predicting = slice(start - 1, len(ids))
        same += bool((found[predicting].argmax(dim=1) == logits[predicting].argmax(dim=1)).all())
    largest = max(float(logits.abs().max()) for logits in expected.logits)
    return Agreement(difference, expected.effect, largest, same, len(expected.texts), dtype)


# --- writing --------------------------------------------------------------------------------------------


def _writer(model: LanguageModel, vectors: Mapping[int, np.ndarray], kind: str) -> Callable[[Path], None]:
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
    try:
        layer = steerable_layer(config)
    except BasiscopeError as error:
        raise BasiscopeError(f"Format {kind}: {error} {_others(vectors)}") from error
    biases = {block: vector / np.float32(layer.factor) for block, vector in vectors.items()}
    paths = {id(part): name for name, part in model.module.named_modules()}
    names = {block: f"{paths[id(part)]}.{layer.path}" for block, part in enumerate(model.blocks)}
    if kind == "peft":
        widths = {names[block]: _width(model.module.get_submodule(names[block])) for block in biases}
        base, is_conv = model.name, config.model_type == "gpt2"
        by_name = {names[block]: bias for block, bias in biases.items()}
        return lambda folder: _write_peft(folder, base, by_name, widths, is_conv)
    changed = _new_config(config, layer)
    if changed is None:
        reason = {
            "mistral": "with a sliding window it cannot be written as a Llama",
            "qwen2": "with a sliding window it cannot be written as a Llama",
        }.get(config.model_type, "its architecture has no bias there, and would drop it without a word")
        also = "--format peft works, too. " if layer.keeps == "no" or reason else ""
        raise BasiscopeError(
            f"Format checkpoint: model of type {config.model_type}: {reason}. {also}{_others(vectors)}"
        )
    source = locate_model(model.name, model.revision)
    return lambda folder: _write_checkpoint(folder, source, changed, layer, names, biases)


def _others(vectors: Mapping[int, np.ndarray]) -> str:
    works = ["vector"] if 0 in vectors else ["gguf", "vector"]
    return f"What works for any model: {' and '.join(f'--format {name}' for name in works)}."


def _new_config(config: Any, layer: Layer) -> dict[str, Any] | None:
    """The config of the steered checkpoint, or None where its architecture cannot keep the bias."""
    stored = config.to_dict()
    if layer.keeps == "native":
        return stored
    if layer.keeps == "mlp_bias":
        return stored | {"mlp_bias": True}
    if layer.keeps == "no" or getattr(config, "sliding_window", None) is not None:
        return None
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        return None
    from transformers import LlamaConfig

    known = set(LlamaConfig().to_dict()) - {"transformers_version", "architectures", "model_type", "layer_types"}
    kept = {key: value for key, value in stored.items() if key in known}
    heads = stored["hidden_size"] // stored["num_attention_heads"]
    return kept | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": config.model_type == "qwen2",
        "mlp_bias": True,
        "head_dim": stored.get("head_dim") or heads,
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
    n_files = len(shards) + 1
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
    folder: Path, base: str, biases: Mapping[str, np.ndarray], widths: Mapping[str, int], is_conv: bool
) -> None:
    """A LoRA of rank 1 whose product is zero and whose B has the bias: exact wherever the bias is. `biases` and
    `widths`, the numbers of inputs, by the layers' full names."""
    from peft import LoraConfig
    from safetensors.numpy import save_file

    config = LoraConfig(
        r=1,
        lora_alpha=1,
        target_modules=list(biases),
        lora_bias=True,
        fan_in_fan_out=is_conv,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
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


def _reload_checkpoint(folder: Path, load: Callable[[], LanguageModel], dtype: str) -> PreTrainedModel:
    from core.model import load_model

    return load_model(str(folder), dtype=dtype).module


def _reload_peft(folder: Path, load: Callable[[], LanguageModel], dtype: str) -> Any:
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base layers have no bias of their own is why this is here
        return PeftModel.from_pretrained(load().module, str(folder)).eval()


def _reload_gguf(folder: Path, load: Callable[[], LanguageModel], dtype: str) -> PreTrainedModel:
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
        changed = block_output(output) + vector.to(block_output(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _reload_vector(folder: Path, load: Callable[[], LanguageModel], dtype: str) -> PreTrainedModel:
    """By the very lines that the card gives."""
    model = load()
    here = SNIPPET.replace('"vector.safetensors"', repr(str(folder / "vector.safetensors")))
    exec(here, {"blocks": model.blocks})
    return model.module


# --- the card -------------------------------------------------------------------------------------------

LOADING = {
    "checkpoint": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(".")
```""",
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ".")
```
The adapter is a LoRA of rank 1 whose product is zero and whose bias steers (`lora_bias`). It cannot be merged
where the base layer has no bias, and servers that ignore `lora_bias` serve the unsteered model.""",
    "gguf": """```
llama-cli -m MODEL.gguf --control-vector vector.gguf
```
`direction.N` is added to the output of block N at every position, counted from 0. The strength is in it.""",
    "vector": f"""\
`blocks` are the model's decoder layers, such as `model.model.layers`; `vector.json` holds the same numbers.

```python
{SNIPPET}```""",
}


def _card(run: Run, model: LanguageModel, direction: int, strength: float, kind: str) -> str:
    label = run.labels().get(direction)
    facts = {
        "run": run.id,
        "model": f"{model.name} ({model.module.config.model_type})",
        "model fingerprint": model.fingerprint,
        "direction": direction,
        "label": label.text if label else "none",
        "strength": f"{strength:g} times the unit direction, at every position",
        "blocks": ", ".join(map(str, run.manifest["blocks"])),
        "made": now(),
    }
    plain = str.maketrans({"`": "'", "\n": " "})
    listed = "\n".join(f"- {name}: `{str(value).translate(plain)}`" for name, value in facts.items())
    return f"""# A direction of a language model's own basis, ready to steer with

{listed}

## Use
{LOADING[kind]}
"""
