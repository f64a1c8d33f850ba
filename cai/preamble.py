"""Cut what a model says about its reply, so that the reply alone is left.

Asked for a revision, models open with "Sure, here is the rewritten response:" or wrap the reply in a fence or quotes.
SFT on such text teaches the habit. The rule is narrow: it cuts an opening line only when that line announces a reply
and ends in a colon, or is a bare label such as "Revision:".
"""

import re

_ANNOUNCED = (
    r"(?:response|reply|answer|revision|version|message|rewrite|rewording|draft|text|critique|review|assessment)"
)
_OPENER = (
    r"(?:sure(?:ly| thing)?|certainly|of course|absolutely|okay|ok|understood|got it|no problem|my apologies"
    r"|i apologi[sz]e|thank you|thanks)"
)
_PREAMBLE = re.compile(
    rf"""\s*
    (?:{_OPENER}\b[^\n:]{{0,60}}?[.!,;:–—-]+\s*)?          # Sure,
    (?:here(?:['’]s|\ is|\ are)|below\ is|this\ is|i(?:['’]ve|\ have)\ (?:re|im|made|up)\w*|the\ following\ is)
    \b[^\n:]{{0,120}}?\b{_ANNOUNCED}\b[^\n:]{{0,100}}:      # here is the rewritten response to the question:
    [*_]*[ \t]*(?:\n|(?=\S))""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL = re.compile(
    rf"""\s*[*_#]*\s*
    (?:(?:the\ )?(?:(?:revised|rewritten|improved|new|updated|corrected|final|better)\ )?(?:assistant['’]?s?\ )?
       (?:{_ANNOUNCED})|assistant)
    \s*[*_]*:[*_]*\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_FENCED = re.compile(r"\s*(?P<fence>`{3,}|~{3,}|\"{3,})(?:text|markdown|plaintext)?[ \t]*\n(?P<inside>.*?)\n?(?P=fence)\s*", re.S)
_QUOTED = re.compile(r"\s*(?:\"(?P<straight>[^\"]+)\"|“(?P<curly>[^“”]+)”)\s*", re.S)


def strip_preamble(text: str) -> tuple[str, str]:
    """Return the reply without its preamble and wrapping, and what was cut off.

    The second value is empty where nothing was. A text that would be left empty is returned as it is.
    """
    start = 0
    for pattern in (_PREAMBLE, _LABEL):
        if found := pattern.match(text, start):
            start = found.end()
    end = len(text)
    if found := _FENCED.fullmatch(text, start):
        start, end = found.span("inside")
    elif found := _QUOTED.fullmatch(text, start):
        start, end = found.span("straight" if found["straight"] else "curly")
    reply = text[start:end].strip()
    if not reply:
        return text.strip(), ""
    cut = (text[:start].strip(), text[end:].strip())
    return reply, " … ".join(filter(None, cut))
