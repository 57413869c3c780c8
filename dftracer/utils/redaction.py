"""Texts without keys and passwords: for errors, logs, traces and what else others may see.

Two kinds of secret are hidden: those that the process knows, because a backend or a program was
given them, in whatever form somebody repeats them; and those that stand where secrets do: the login
of a URL, the header of an authorization, the value of a variable or an option named ``password``.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote, quote_plus

from dftracer.utils._native import hide_secrets, keep_secret

_NAME = (
    r"(?:pass(?:word|wd|phrase)|secret|token(?!s|i)|api_?key|access_?key|private_?key|credentials?)"
)
_VALUE = r"""(?:"[^"\r\n]*"|'[^'\r\n]*'|[^\s&;,'"\\]+)"""

_SPOKEN_OF = re.compile(
    rf"""
    (   \b(?:proxy-)?authorization\\?["']?\s*[:=]\s*\\?["']?\s*(?:(?:basic|bearer|token)\s+)?
      | \b(?:x-)?(?:api-key|auth-token)\\?["']?\s*[:=]\s*\\?["']?\s*
      | \b(?:set-)?cookie\\?["']?\s*:\s*\\?["']?\s*
      | [?&](?:sig|signature|x-amz-signature|key)=
      | {_NAME}\w{{0,20}}(?:=|\\?["']\s*:\s*)
      | (?<![\w-])--[\w-]{{0,40}}{_NAME}\s+(?!-)
      | \s-u\s+[^\s:'"]{{1,100}}:
    )
    {_VALUE}
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""A place where secrets stand, and the text there."""

_MAY_SPEAK = re.compile("auth|cookie|key|pass|secret|token|credential|sig|-u", re.IGNORECASE)
"""What is in every text in which the above finds anything. Most texts are without."""

_SECRET_NAME = re.compile(
    r"(?:^|_)(?:pass|passw(?:or)?d|passphrase|secret|token|key|apikey|credentials?|auth)(?:_|$)",
    re.IGNORECASE,
)
"""Names of variables whose values are secret, such as ``OPENAI_API_KEY``."""

_LOGIN = re.compile(r"://[^\s/?#'\"<>:@]*:([^\s'\"<>]+)@")

_MIN_LENGTH = 4
"""Shorter values are words like any other."""

_AROUND = 10_000
"""How many characters beyond those that are wanted are looked through, lest a secret be cut."""


def hide(text: str, limit: int | None = None) -> str:
    """Return ``text`` without secrets, and then only its first ``limit`` characters."""
    if limit is not None and len(text) > limit + _AROUND:
        text = text[: limit + _AROUND]
    hidden = hide_secrets(text)
    if _MAY_SPEAK.search(hidden):
        hidden = _SPOKEN_OF.sub(r"\1***", hidden)
    return hidden if limit is None else hidden[:limit]


def hide_before_end(text: str, limit: int) -> str:
    """Return the last ``limit`` characters of ``text`` without secrets."""
    return hide(text[-limit - _AROUND :])[-limit:]


def keep(secret: str) -> None:
    """Hide ``secret`` from now on, in all forms."""
    if len(secret) >= _MIN_LENGTH:
        keep_secret([form for form in _forms(secret) if form])


def keep_environment(environment: Mapping[str, str] | None = None) -> None:
    """Hide what is secret in the variables of a program; those of this process by default."""
    variables = os.environ if environment is None else environment
    names: list[object] = list(variables)
    for name in names:
        value: object = variables.get(name) if isinstance(name, str) else None
        if not (isinstance(name, str) and isinstance(value, str)):
            continue  # `subprocess` takes bytes too
        for login in _LOGIN.findall(value):
            keep(login)
        if _SECRET_NAME.search(name) and not os.path.exists(value):
            keep(value)


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_ESCAPES: tuple[Callable[[str], str], ...] = (repr, json.dumps, _json)
"""How programs write a text between quotation marks."""


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is and as others may repeat it."""
    secret = secret.encode(errors="replace").decode()
    yield secret
    for escape in _ESCAPES:
        once = escape(secret)[1:-1]
        yield from (once, escape(once)[1:-1])
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret), html.escape(secret))
    yield "".join(f"\\u{ord(letter):04x}" for letter in secret)
    yield "".join(f"&#{ord(letter)};" for letter in secret)
    yield "".join(f"&#x{ord(letter):x};" for letter in secret)
    content = secret.encode()
    yield content.hex()
    # Of what is encoded with something before it, such as a name, groups begin elsewhere.
    for before, shared in ((0, 0), (1, 2), (2, 3)):
        encoded = base64.b64encode(bytes(before) + content).decode().rstrip("=")
        whole = encoded[: len(encoded) - 1] if (before + len(content)) % 3 else encoded
        yield whole[shared:]


class _Hiding(logging.Filter):
    """Makes the text of a record before its handlers do, without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception:
            return True  # the handlers complain of it
        record.msg, record.args = hide(text), None
        return True


_HIDING = _Hiding()


def hide_in_logs(*loggers: str) -> None:
    """Leave secrets out of what these loggers are given from now on."""
    for name in loggers:
        logging.getLogger(name).addFilter(_HIDING)
