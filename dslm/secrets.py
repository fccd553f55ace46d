"""Recognise secrets: a setting whose name says so, or a value that has a secret's shape.

Names, values and arguments in; a reason, or a text without them, out. What is refused or left out
for it is for the caller to say. Nothing else in dslm decides it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

LEFT_OUT = "…"
HINT = "set it in your own environment: the ranks inherit that, and it is written down nowhere"

# As the services that give them out describe them (GitHub's secret scanning patterns, gitleaks).
_SHAPES = {
    "a token of the Hugging Face Hub": r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}",
    "an API key": r"(?<![A-Za-z0-9_-])sk-(?:(?=[\w-]*\d)[\w-]{16,}|(?:ant|proj|or)-[\w-]{8,}"
    r"|[A-Za-z0-9]{20,})",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,})",
    "a token of GitLab": r"\bglpat-[\w-]{16,}",
    "a key of AWS": r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",
    "a key of Google": r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}",
    "a token of Slack": r"\bxox[a-z]-[\w-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",
    "a token of a package registry": r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-AgE[\w-]{20,}",
    "a token of a provider of models": r"\b(?:r8_[A-Za-z0-9]{30,}|dapi[0-9a-f]{32}|nvapi-[\w-]{20,}"
    r"|gsk_[A-Za-z0-9]{30,}|wandb_v1_\w{20,})",
    "a payment key": r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----[\s\S]*?(?:-----END[^\n]*|\Z)",
    "a header that authenticates": r"(?i:\b(?:bearer|basic)\s+)(?=\S*\d)[\w.~+/=-]{16,}",
    "a URL with a password": r"(?<=://)[^\s/:@]*:[^\s/:@]+(?=@)",
}
_ANY_SHAPE = re.compile("|".join(f"(?:{pattern})" for pattern in _SHAPES.values()))

# How a name ends, its separators left out: `hub_token` and `HUB-TOKEN` are `hubtoken`.
_NAMES = re.compile(
    r"(?:secret|passw(?:or)?d|passphrase|credential|"
    r"(?:api|access|secret|private|auth|account|signing|encryption|ssh|deploy|license)keys?|"
    r"(?:access|secret)keyid|"
    r"(?:api|auth|access|hub|hf|bearer|refresh|session)tokens?)s?(?:value|string|\d+)?"
)
# Tokens of a tokenizer, and how many: `pad_token`, `num_tokens_per_token`.
_OF_A_TOKENIZER = frozenset({
    "bos", "eos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "begin", "special",
    "additional", "add", "new", "next", "first", "last", "image", "img", "audio", "video", "vision",
    "think", "eot", "eom", "boi", "eoi", "bot", "user", "system", "assistant", "response",
    "instruction", "prompt", "placeholder", "extra", "word", "text", "per", "each",
})  # fmt: skip
# May be harmless; a value under one of these names must also look random.
_SUSPICIOUS = frozenset({
    "key", "token", "tokens", "auth", "authorization", "authentication", "bearer", "pass", "pwd",
    "pat", "pin", "login", "cookie", "session", "signature", "webhook", "dsn", "jwt", "sas",
    "license",
})  # fmt: skip
_FLAGS = frozenset({
    "", "0", "1", "true", "false", "yes", "no", "on", "off", "null", "none", "auto",
})  # fmt: skip
# In an argument: `NAME=VALUE`, also after another `=`; in JSON; in YAML's braces.
_SETTING = re.compile(
    r"""(?:^|(?<=[={,"'])\s*)(?P<name>[\w.+-]+)(?:=|["']?\s*:\s)(?=\s*["']?(?P<value>[^"'}]*))"""
)
_A_PATH = re.compile(r"(?:[/~]|\.{1,2}/)\S*")
_SHORTEST_RANDOM = 16
_RANDOM_BITS = 3.0  # of Shannon entropy a character: hexadecimal digits have 4, words about 2.5


def sounds_secret(name: str) -> bool:
    """Return whether the last part of a name suggests a secret: `training_args.hub_token`."""
    words = _words(name.rpartition(".")[2])
    if not words:
        return False
    if len(words) > 1 and words[-1].isdigit():
        words.pop()  # HF_TOKEN_2
    if words[-1] == "token":
        return not _OF_A_TOKENIZER.intersection(words[-2:-1])
    return re.search(rf"{_NAMES.pattern}$", "".join(words)) is not None


def shape_of_secret(text: str) -> str:
    """Name the secret that a text holds, judged by its shape; empty if none."""
    if not _ANY_SHAPE.search(text):
        return ""
    return next(noun for noun, pattern in _SHAPES.items() if re.search(pattern, text))


def why_secret(name: str, value: object) -> str:
    """Say why the value of a setting is a secret; empty if it isn't."""
    if value is None or isinstance(value, bool | Mapping | list | tuple):
        return ""
    text = str(value).strip()
    shape = shape_of_secret(text)
    if shape:
        return f"looks like {shape}"
    harmless = text.lower() in _FLAGS or re.fullmatch(r"<.*>|\[[A-Z_]+\]", text)
    if sounds_secret(name):
        # a file that holds it may be named
        return "" if harmless or _A_PATH.fullmatch(text) else "sounds like a secret"
    suspicious = _SUSPICIOUS.intersection(_words(name.rpartition(".")[2])[-1:])
    return "looks like a secret" if suspicious and _looks_random(text) else ""


def find_secrets(tree: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of every secret in a tree of settings, and why it is one."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            below = f"{name}.{key}" if name else str(key)
            if shape := shape_of_secret(str(key)):
                yield name, f"has a key that looks like {shape}"
            yield from find_secrets(value, below)
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            if isinstance(value, Mapping | list | tuple):
                yield from find_secrets(value, f"{name}.{number}")
            elif why := why_secret(name, value):
                yield f"{name}.{number}", why
    elif why := why_secret(name, tree):
        yield name, why


def find_in_arguments(arguments: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The position of every argument that holds a secret, and why: `--token X`, `a.token=X`."""
    option = ""
    for position, argument in enumerate(arguments):
        settings = [(match["name"], match["value"]) for match in _SETTING.finditer(argument)]
        is_value = option and not argument.startswith("-")
        settings.append((option if is_value else "", argument))
        why = next(filter(None, (why_secret(name, value) for name, value in settings)), "")
        if why:
            yield position, why
        option = argument if argument.startswith("-") and "=" not in argument else ""


def command_without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return a command line as it may be written down."""
    shown = list(arguments)
    for position, _ in find_in_arguments(arguments):
        name, equals, _ = shown[position].partition("=")
        named = equals and re.fullmatch(r"[\w.+-]+", name) and not shape_of_secret(name)
        shown[position] = f"{name}={LEFT_OUT}" if named else LEFT_OUT
    return shown


def text_without_secrets(text: str) -> str:
    """Prose or a log, whatever has the shape of a secret replaced."""
    return _ANY_SHAPE.sub(LEFT_OUT, text)


def _words(name: str) -> list[str]:
    """`hubToken`, `HUB_TOKEN` and `--hub-token` as `[hub, token]`."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[^a-z0-9]+", apart.lower()) if word]


def _looks_random(text: str) -> bool:
    """Return whether a text is one long word of letters and digits that repeat little."""
    if (
        len(text) < _SHORTEST_RANDOM
        or _A_PATH.fullmatch(text)
        or not re.fullmatch(r"[\w+=./-]+", text)
    ):
        return False
    pieces = re.split(r"[_./-]", text)
    if not any(len(p) >= 8 and re.search(r"\d", p) and re.search("[A-Za-z]", p) for p in pieces):
        return False
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares) >= _RANDOM_BITS
