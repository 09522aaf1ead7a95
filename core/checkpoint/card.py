"""The card of an export: what it is and how it is used."""

from __future__ import annotations

from core.checkpoint.formats import LLAMA_CPP, LLAMA_CPP_STEERS, SNIPPET, has_bias, writer_for
from core.errors import BasiscopeError
from core.model import LanguageModel
from core.workspace import Run, now

LOADING = {
    "checkpoint": """```python
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(".")
```""",
    "peft": """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ".")
```""",
    "gguf": """```
llama-cli -m MODEL.gguf --control-vector vector.gguf
```
`direction.N` is added to the output of block N at every position, counted from 0. The strength is in it.""",
    "vector": f"""\
`blocks` are the model's decoder layers, such as `model.model.layers`; `vector.json` holds the same numbers.

```python
{SNIPPET}```""",
}


def limits(model: LanguageModel, kind: str) -> str:
    """What the format cannot do for this model, and what no export checks; empty where that is nothing."""
    model_type = model.module.config.model_type
    if kind == "gguf":
        known = (
            f"In its source ({LLAMA_CPP}) a model of type {model_type} has vectors added to the output of a block."
            if model_type in LLAMA_CPP_STEERS
            else f"Whether it steers a model of type {model_type} is not known: where it does not, it ignores a "
            "vector without a word."
        )
        return (
            "The file was read as llama.cpp reads it; llama.cpp itself was not run. "
            f"{known} See that a greedy text with the vector differs from one without."
        )
    if kind != "peft":
        return ""
    merging = "`merge_and_unload` of peft merges it, since the base layer has a bias."
    if not has_bias(model):
        merging = f"It cannot be merged, since the base layer has no bias: peft refuses. {_instead(model)}"
    return (
        "A LoRA of rank 1 whose product is zero and whose bias steers (`lora_bias`): a product alone cannot add "
        f"the same whatever comes in. {merging} vLLM has given such biases up and refuses them (vllm #25807); a "
        "server that ignores one serves the unsteered model."
    )


def _instead(model: LanguageModel) -> str:
    try:
        writer_for(model, {}, "checkpoint")
    except BasiscopeError:
        return "No checkpoint of its architecture keeps one, either."
    return "For a whole model take `--format checkpoint`."


def write_card(
    run: Run, model: LanguageModel, direction: int, strength: float, in_sd: float | None, kind: str
) -> str:
    """`strength` in multiples of the unit direction, `in_sd` the same in standard deviations of the scores."""
    label = run.labels().get(direction)
    deviations = "" if in_sd is None else f", which is {in_sd:.4g} standard deviations of its scores"
    facts = {
        "run": run.id,
        "model": f"{model.name} ({model.module.config.model_type})",
        "model fingerprint": model.fingerprint,
        "direction": direction,
        "label": label.text if label else "none",
        "strength": f"{strength:g} times the unit direction{deviations}, at every position",
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
