"""What test files import by name: where the real data lies, and a chat template."""

from pathlib import Path

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
