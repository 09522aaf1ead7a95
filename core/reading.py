"""Reading a direction: its examples, its tokens, and the words that set its two ends apart."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from core.errors import BasiscopeError
from core.server import MIB, NO_COMPLETION, Connection, Unreadable, read_completion

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from core.basis import Basis
    from core.model import LanguageModel

RANKS = ("score", "cosine")
POLARITIES = {"+": 1, "-": -1}
ENDS = 0.1
END_EXAMPLES = 100
LENGTH_STRATA = 10
PRIOR_EXAMPLES = 10.0
LABEL_WORDS = 3
SIGNIFICANCE = 0.05
MIN_EXAMPLES = 5
MIN_SHARE = 0.002
MAX_WORDS = 20_000
WORD_CHARACTERS = 5_000
NUMBER = "[number]"
QUESTIONS = ("how many", "how much", "how long", "how often")


def rank_examples(values: np.ndarray, polarity: int, top: int | None = None) -> np.ndarray:
    """Positions of the examples at one end, the most extreme first; ties keep the order of the examples.

    values: (n,) scores or cosines of one direction; polarity: +1 or -1
    """
    keys = -polarity * values
    if top is None or 10 * top > len(keys) or np.isnan(keys).any():
        return np.argsort(keys, kind="stable")[:top]
    able = np.flatnonzero(keys <= np.partition(keys, top)[top])
    return able[np.argsort(keys[able], kind="stable")[:top]]


# --- tokens ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenScores:
    """scores (tokens, k): every token's own centred score on every direction. Their mean over the pooled
    window is the example's score; tokens outside the window are NaN."""

    example_id: int
    tokens: tuple[str, ...]
    scores: np.ndarray


def score_tokens(
    model: LanguageModel, basis: Basis, blocks: tuple[int, ...], ids: np.ndarray, first: int, example_id: int
) -> TokenScores:
    """One forward pass over one example's token ids (tokens,), pooled from token `first` on. Where memory runs out
    the text goes through the model in pieces, halved until they fit.

    Raises BasiscopeError where not even one token at a time fits.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    piece = len(ids)
    while True:
        try:
            scores = _scored(model, basis, blocks, ids, piece)
            break
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not should_reduce_batch_size(error):
                raise
            if piece == 1:
                raise BasiscopeError(
                    f"Example {example_id} ({len(ids):,} tokens): there is no memory to score its tokens, not "
                    "even one at a time."
                ) from error
        clear_device_cache()
        piece = (piece + 1) // 2
    scores[:first] = np.nan
    return TokenScores(example_id, token_texts(model.tokenizer, ids), scores)


def _scored(
    model: LanguageModel, basis: Basis, blocks: tuple[int, ...], ids: np.ndarray, piece: int
) -> np.ndarray:
    """(tokens, k) float32 centred scores, by `piece` tokens at a time; all but the first piece see those before
    them through the cache."""
    import torch
    from transformers import DynamicCache

    from core.model import cache_argument, run_blocks

    hidden_size = model.hidden_size
    directions = torch.from_numpy(basis.directions).view(basis.k, len(blocks), hidden_size)
    mean = torch.from_numpy(basis.mean).view(len(blocks), hidden_size)
    total = torch.zeros(len(ids), basis.k)
    inputs: dict[str, Any] = {}
    if piece < len(ids):
        name = cache_argument(model.module.get_decoder())
        if name is None:
            raise BasiscopeError("There is no memory to score all its tokens, and the model reads none in pieces.")
        inputs = {name: DynamicCache(config=model.module.config), "use_cache": True}
    for start in range(0, len(ids), piece):
        scores = total[start : start + piece]

        def receive(block: int, hidden: torch.Tensor, scores: torch.Tensor = scores) -> None:
            j = blocks.index(block)
            centred = (hidden[0].float().cpu() - mean[j]) / float(basis.block_scale[j])
            scores.add_(centred @ directions[:, j].T)

        inputs["input_ids"] = torch.as_tensor(ids[start : start + piece], dtype=torch.long)[None].to(model.device)
        run_blocks(model, inputs, blocks, receive)
    return total.numpy()


def token_texts(tokenizer: Any, ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    """Each token's share of the decoded text, so that they join to it; a character split over several
    tokens falls to the last of them."""
    ids = [int(i) for i in ids]

    def decoded(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts, done = [], ""
    start = whole = 0
    for end in range(1, len(ids) + 1):
        text = decoded(start, end)
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(done) :])
        done = text
        if end - start >= 32:  # decode from a whole character further on, so that cost stays linear
            start, done = whole, decoded(whole, end)
        whole = end
    return tuple(texts)


# --- labels ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Label:
    """What a direction is called: `text` is "what the + end has : what the - end has".

    source: `words` (from the texts), `person` or `model`; positive, negative: (word, z) pairs behind it;
    raw: the answer of the language model that gave it, with its name in `author`
    """

    text: str
    source: str
    positive: tuple[tuple[str, float], ...] = ()
    negative: tuple[tuple[str, float], ...] = ()
    raw: str | None = None
    author: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Label:
        words = {end: tuple((w, float(z)) for w, z in stored.get(end, ())) for end in ("positive", "negative")}
        return cls(stored["text"], stored["source"], **words, raw=stored.get("raw"), author=stored.get("author"))


@dataclass(frozen=True)
class WordCounts:
    """Which of `words` each example contains: present (n, words) sparse, 0 or 1."""

    words: np.ndarray
    present: csr_matrix


def count_words(texts: Sequence[str]) -> WordCounts:
    """The terms in at least MIN_SHARE of the texts (and in MIN_EXAMPLES), the most frequent MAX_WORDS of them."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    at_least = max(MIN_EXAMPLES, int(MIN_SHARE * len(texts)))
    vectorizer = CountVectorizer(
        binary=True,
        analyzer=terms,
        min_df=min(at_least, max(1, len(texts) // 4)),
        max_features=MAX_WORDS,
        dtype=np.int32,
    )
    try:
        present = vectorizer.fit_transform(texts)
    except ValueError:  # no word is in enough texts
        return WordCounts(np.array([], dtype=object), csr_matrix((len(texts), 0), dtype=np.int32))
    return WordCounts(vectorizer.get_feature_names_out(), present)


def terms(text: str) -> list[str]:
    """Words, phrases of two words, single symbols, and NUMBER for every number, of the first
    WORD_CHARACTERS of a text.

    >>> terms("It's 3.5 km, she said.")
    ["it's", '[number]', 'km', ',', 'she', 'said', '.', 'she said']
    """
    found = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d(?:[\d.,]*\d)?|[^\w\s]", text[:WORD_CHARACTERS].lower())
    parts = [NUMBER if part[0].isdigit() else part for part in found]
    return parts + [f"{a} {b}" for a, b in pairwise(parts) if a[0].isalpha() and b[0].isalpha()]


def matched_ends(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the examples at the + and the - end within every stratum of length, so that both ends
    have the same lengths. An end is the ENDS share of all, or END_EXAMPLES where that is more, but never
    above a third. values, lengths: (n,)."""
    share = min(1 / 3, max(ENDS, END_EXAMPLES / max(len(values), 1)))
    chance = np.random.default_rng(0).permutation(len(lengths))  # not the data's order among equal lengths
    order = np.lexsort((chance, lengths))
    strata = np.array_split(order, max(1, min(LENGTH_STRATA, len(values) // 6)))
    top, bottom = [], []
    for stratum in strata:
        ranked = stratum[rank_examples(values[stratum], 1)]
        size = max(1, round(share * len(ranked))) if len(ranked) > 1 else 0
        top.append(ranked[:size])
        bottom.append(ranked[len(ranked) - size :])
    return np.concatenate(top), np.concatenate(bottom)


def log_odds_scores(counts: np.ndarray, sizes: np.ndarray, share: np.ndarray) -> np.ndarray:
    """(words,) z-scores of the log-odds ratio of having a word at one end and at the other, by the score test (Rao
    1948), with an informative prior as in "Fightin' Words" (Monroe, Colaresi and Quinn 2008): each end has
    PRIOR_EXAMPLES more, which have the words in the shares of all examples.

    A text counts once for a word, so a word that all texts have tells nothing, however many others one end's texts
    have. The variance is that under no difference: the one at the estimate, as in that paper, grows without limit
    for a word that one end lacks, and would put it behind words that both ends have.

    counts: (2, words) examples of either end that have the word; sizes: (2,) examples; share: (words,) of all
    examples, in (0, 1)
    """
    counts = counts + PRIOR_EXAMPLES * share
    sizes = sizes[:, None] + PRIOR_EXAMPLES
    both = counts.sum(axis=0) / sizes.sum()
    first, second = counts / sizes
    return (first - second) / np.sqrt(both * (1 - both) * (1 / sizes).sum())


def contrastive_label(counts: WordCounts, values: np.ndarray, lengths: np.ndarray) -> Label:
    """A label from the texts themselves: the terms that set the two ends apart, lengths matched.

    Terms count where the two-sided test holds for all of them together at a false discovery rate of
    SIGNIFICANCE (Benjamini and Hochberg 1995), so that scores that mean nothing get a label in at most that
    share of cases; without such a term the label says so. values, lengths: (n,)
    """
    from scipy.stats import false_discovery_control, norm

    if not len(counts.words):
        return Label("no words to compare", "words")
    ends = matched_ends(values, lengths)
    found = np.stack([np.asarray(counts.present[rows].sum(axis=0)).ravel() for rows in ends])
    share = (np.asarray(counts.present.sum(axis=0)).ravel() + 0.5) / (len(values) + 1)
    z = log_odds_scores(found, np.array([len(rows) for rows in ends]), share)
    holds = false_discovery_control(2 * norm.sf(np.abs(z))) < SIGNIFICANCE
    telling = [_distinct(counts.words[side], np.abs(z[side])) for side in (holds & (z > 0), holds & (z < 0))]
    spoken = [[word for word, _ in end if _emptiness(word) < 2] or [word for word, _ in end] for end in telling]
    texts = [", ".join(words[:LABEL_WORDS]) or "none" for words in spoken]
    text = " : ".join(texts) if any(telling) else "no word sets the ends apart"
    return Label(text, "words", telling[0], telling[1])


def _distinct(words: np.ndarray, z: np.ndarray, most: int = 12) -> tuple[tuple[str, float], ...]:
    """(word, z), the telling ones first: by falling z, which counts a half for function words and numbers, a
    quarter for symbols; none that shares a word with one before it, a plural s aside."""
    chosen: list[tuple[str, float]] = []
    used: set[str] = set()
    telling = [value / 2 ** _emptiness(str(word)) for word, value in zip(words, z, strict=True)]
    for i in np.argsort(-np.array(telling), kind="stable"):
        stems = {word.rstrip("s") for word in words[i].split()}
        if len(chosen) < most and not stems & used:
            chosen.append((str(words[i]), round(float(z[i]), 2)))
            used |= stems
    return tuple(chosen)


def _emptiness(term: str) -> int:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    if not term[0].isalpha():
        return 1 if term == NUMBER else 2
    empty = all(len(word) == 1 or word in ENGLISH_STOP_WORDS | {"did", "does"} for word in term.split())
    return int(empty and term not in QUESTIONS)


# --- labels by a language model -------------------------------------------------------------------------

LLM_EXAMPLES = 10
LLM_CHARACTERS = 1_500
LABEL_CHARACTERS = 100
LLM_PROMPT = """\
Two groups of texts lie at opposite ends of one axis of a language model's activations.

Group A:
{positive}

Group B:
{negative}

What sets the groups apart? First name the contrastive axes you see, each in one line. Then end with one
line of exactly this form, each side at most three words:
LABEL: <group A in three words> : <group B in three words>"""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. The key stays in the environment and is written nowhere."""

    url: str
    model: str

    @classmethod
    def from_environment(cls) -> Endpoint | None:
        """BASISCOPE_LLM_URL and BASISCOPE_LLM_MODEL, or None where either is missing. The key is read from
        BASISCOPE_LLM_KEY when a request is made."""
        url, model = os.environ.get("BASISCOPE_LLM_URL"), os.environ.get("BASISCOPE_LLM_MODEL")
        check_without_key(url or "", "BASISCOPE_LLM_KEY")
        return cls(url, model) if url and model else None


def check_without_key(url: str, variable: str) -> None:
    """Raises BasiscopeError, which does not repeat it, for a server's address with a key or password in it: an
    address stands in process lists, logs and manifests."""
    parts = urlsplit(url)
    named = [name for name in parse_qs(parts.query) if re.search("key|token|secret|password", name, re.IGNORECASE)]
    if named or "@" in parts.netloc:
        raise BasiscopeError(
            f"The address of the server at {parts.hostname} has a key or password in it, which others would read "
            f"in process lists and manifests. Give it without, and the key as {variable} in the environment."
        )


def label_by_model(endpoint: Endpoint, positive: Sequence[str], negative: Sequence[str]) -> Label:
    """Ask a language model for the contrast between the ten extreme texts of each end.

    Raises BasiscopeError where the server cannot be used or its answer holds no contrast pair.
    """
    groups = {"positive": _listed(positive), "negative": _listed(negative)}
    messages = [{"role": "user", "content": LLM_PROMPT.format(**groups)}]
    connection = Connection(endpoint.url, "BASISCOPE_LLM_KEY", timeout=120, retries=2)

    async def answer() -> dict[str, Any]:
        async with connection.client(MIB) as client:
            call = client.chat.completions.with_raw_response.create
            return await connection.ask(call, model=endpoint.model, messages=messages, temperature=0)

    try:
        said = read_completion(asyncio.run(answer()))
    except Unreadable as error:
        hint = "; its address usually ends in /v1" if str(error) in NO_COMPLETION else ""
        raise BasiscopeError(
            f"The label server {endpoint.url} gave no chat completion that can be read ({error}), so it gave no "
            f"contrast pair{hint}."
        ) from None
    except BasiscopeError as error:
        raise LabelServerError(f"The label server could not answer: {error}") from None
    if said.is_cut and not said.text.strip():
        raise BasiscopeError("The language model used up its tokens before it gave a contrast pair.")
    if connection.holds_key(said.text):
        raise BasiscopeError("The language model's answer holds the key that was sent; it is not kept.")
    return Label(parse_contrast(said.text), "model", raw=said.text, author=endpoint.model)


class LabelServerError(BasiscopeError):
    """The server cannot be used, and so for no direction."""


def _listed(texts: Sequence[str]) -> str:
    return "\n".join(json.dumps(text[:LLM_CHARACTERS], ensure_ascii=False) for text in texts[:LLM_EXAMPLES])


def parse_contrast(answer: str) -> str:
    """The pair after the last `LABEL:`, as `left : right`. Raises BasiscopeError where there is none."""
    end = re.sub(r"[^\S\n]+", " ", answer[-LLM_CHARACTERS:])
    found = re.findall(r"LABEL:\**\s*(.+?)\s*(?::|\bvs\.?\b)\s*(.+?)\s*$", end, flags=re.M | re.I)
    pairs = [tuple("".join(filter(str.isprintable, side)).strip(" *_`<>\"'.") for side in pair) for pair in found]
    if not pairs or not all(0 < len(side) <= LABEL_CHARACTERS for side in pairs[-1]):
        raise BasiscopeError(f"The language model gave no contrast pair; it said: {answer[:200]!r}.")
    return " : ".join(pairs[-1])
