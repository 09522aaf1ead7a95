"""What this machine offers, and what is missing."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from core import __version__
from core.model import choose_device, choose_dtype
from core.versions import tested_with
from core.workspace import Workspace

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "safetensors",
    "scikit-learn",
    "umap-learn",
    "streamlit",
    "plotly",
    "peft",
    "gguf",
)


def examine(workspace: Workspace) -> dict[str, Any]:
    """Facts by name, in the order in which a person wants them."""
    import psutil
    import torch

    device = choose_device()
    memory = psutil.virtual_memory()
    facts: dict[str, Any] = {
        "basiscope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "device": device,
        "dtype": f"{choose_dtype('auto', device)} (auto)",
    }
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        facts[f"gpu {i}"] = f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    missing = []
    for package in PACKAGES:
        try:
            found = version(package)
        except PackageNotFoundError:
            missing.append(f"package {package}: pip install {package}")
            continue
        tested = tested_with(package, found)
        facts[package] = f"{found} (tested with {tested})" if tested else found
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        missing.append("chromium, only for the browser tests: apt-get install chromium")
    facts["workspace"] = str(workspace.root)
    facts["disk"] = f"{workspace.free_bytes() / 1e9:.1f} GB free"
    facts["missing"] = "; ".join(missing) or "nothing"
    return facts
