"""Texts as vectors, for the diversity of texts: TF-IDF of their words, or sentence embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.activations import Progress, silent
from core.errors import BasiscopeError
from core.model import is_folder
from core.selection.screening import file_digest

DIMENSIONS = 50
ENCODED = 256
"""Texts that a sentence model is given between two reports of progress."""
Vectors = Callable[[], np.ndarray]


def text_vectors(texts: Sequence[str], model: str | None = None, progress: Progress = silent) -> np.ndarray:
    """(n, m) float32 rows of length 1: by a sentence-transformers model where one is named, else by TF-IDF."""
    progress("vectors", 0, len(texts))
    vectors = sentence_vectors(texts, model, progress) if model else tfidf_vectors(texts)
    progress("vectors", len(texts), len(texts))
    return vectors


def text_model_fingerprint(model: str | None) -> str | None:
    """SHA-256 of a sentence model's files where it is a folder here; None for a hub id and for TF-IDF."""
    folder = Path(model or "").expanduser()
    if not model or not folder.is_dir():
        return None
    stamps = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))]
    return _fingerprint(folder, tuple(stamps))


@lru_cache(maxsize=16)
def _fingerprint(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Read again where a file's time or size is another. A sentence model keeps parts of itself in folders, and
    may keep its weights in other files than core.model reads."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.relative_to(folder)} {file_digest(str(path))}\n".encode())
    return digest.hexdigest()


def tfidf_vectors(texts: Sequence[str]) -> np.ndarray:
    """(n, DIMENSIONS) float32: TF-IDF of the words, reduced by a truncated SVD, each row of length 1."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    try:
        counts = TfidfVectorizer(max_features=20_000, sublinear_tf=True, dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise BasiscopeError("Rule text: the texts hold no words to compare.") from error
    dimensions = min(DIMENSIONS, counts.shape[1] - 1, counts.shape[0] - 1)
    if dimensions < 1:
        raise BasiscopeError("Rule text: the texts hold too few words to compare.")
    reduced = TruncatedSVD(dimensions, random_state=0).fit_transform(counts)
    return np.ascontiguousarray(normalize(reduced), dtype=np.float32)


def sentence_vectors(texts: Sequence[str], model: str, progress: Progress = silent) -> np.ndarray:
    """(n, m) float32 embeddings by a model that sentence-transformers loads, a local folder or a hub id. Raises
    BasiscopeError where the extra is not installed, or the model cannot be loaded."""
    if is_folder(model) and not Path(model).expanduser().is_dir():
        raise BasiscopeError(f"Text model: there is no folder {model}.")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise BasiscopeError(
            'Sentence embeddings need an extra: pip install "basiscope[sentences]"; or leave out --text-model.'
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BasiscopeError(f"Text model {model}: sentence-transformers cannot load it ({reason}).") from error
    parts = []
    for start in range(0, len(texts), ENCODED):
        progress("vectors", start, len(texts))
        parts.append(encoder.encode(list(texts[start : start + ENCODED]), normalize_embeddings=True))
    return np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
