"""The card of an export: what it is and how it is used."""

from __future__ import annotations

from core.checkpoint.formats import SNIPPET
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
