"""Inputs that resemble good ones: seeds with pieces cut, doubled, exchanged and put in."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

_MOST_EDITS = 4


def mangled(seeds: Sequence[str], words: Sequence[str]) -> st.SearchStrategy[str]:
    """A text: one of the seeds after some edits, with words of its format or with any letters."""

    @st.composite
    def text_of(draw: st.DrawFn) -> str:
        text = draw(st.sampled_from(seeds))
        piece = st.sampled_from(words) | st.text(max_size=12)
        for _ in range(draw(st.integers(0, _MOST_EDITS))):
            start = draw(st.integers(0, len(text)))
            end = min(len(text), start + draw(st.integers(0, 20)))
            match draw(st.sampled_from(("put", "cut", "double", "exchange"))):
                case "put":
                    text = text[:start] + draw(piece) + text[start:]
                case "cut":
                    text = text[:start] + text[end:]
                case "double":
                    text = text[:end] + text[start:end] * draw(st.integers(1, 40)) + text[end:]
                case "exchange":
                    text = text[:start] + draw(piece) + text[end:]
        return text

    return text_of()  # whose name is short: hypothesis writes it down


def mangled_bytes(seeds: Sequence[str], words: Sequence[str]) -> st.SearchStrategy[bytes]:
    """As bytes: UTF-8, or with bytes in it that are no text, or anything."""
    texts = mangled(seeds, words).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return texts | st.tuples(texts, st.binary(max_size=8), texts).map(b"".join) | st.binary()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["auto", "cpu", 10**400, -1, 0.5, "1e-4", "\ud800", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Any value of a JSON, also numbers and texts that no JSON can hold."""
