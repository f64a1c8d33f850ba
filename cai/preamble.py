"""Cut what a model says about its reply, so that the reply alone is left.

Asked for a revision, models open with "Sure, here is the rewritten response:" or wrap the reply in a fence or quotes.
SFT on such text teaches the habit. The rule is narrow, since a cut into the reply itself is worse than a preamble left
standing. Cut are, at the beginning only:

- an announcement of the reply as a rewritten one, in one line that ends in a colon. "Here are three ways:" or "Here is
  a revised version of your essay:" is what an assistant says to a human, and stays;
- a label: "Revised reply:", a heading of such words, or a bare "Assistant:" where no other line has a label, as a
  dialogue would;
- and then quotation marks, a fence of them, a code fence or rules around all that is left. A code fence or rules
  without a word before them belong to the reply.
"""

import re
from functools import cached_property

_REPLY = r"(?:response|reply|answer)"
_REWORDED = r"(?:re-?written|revised|re-?worded|re-?phrased)"
_REWRITTEN = (
    rf"(?:{_REWORDED}|improved|updated|corrected|edited|modified|amended|refined|adjusted|reworked|new|better|safer"
    r"|alternative)"
)
_REWRITING = r"(?:revision|rewrite|rewriting|rewording|rephrasing)"
_WORDS = r"(?:[\w'’-]+,?\ ){0,4}?"
_OF_REPLY = rf"of\ (?:the|my|this|that)\ {_WORDS}{_REPLY}\b"
_WHAT = rf"""(?:
    {_WORDS}{_REWRITTEN},?\ {_WORDS}{_REPLY}\b                              # a revised, kinder reply
    |{_WORDS}{_REWORDED}\ version\b(?:\ {_OF_REPLY}|(?!\ of\b))             # the revised version
    |{_WORDS}{_REWRITING}\ {_OF_REPLY}                                      # a rewrite of my reply
    |{_REWRITING}                                                           # my revision
    |(?:critique|review|assessment)\ {_OF_REPLY}
    |assistant['’]s\ {_WORDS}{_REPLY}\b
)"""
_OPENER = r"""(?:
    (?:sure(?:\ thing)?|certainly|of\ course|absolutely|okay|ok|understood|got\ it|no\ problem|my\ apologies|thanks
    |thank\ you|you['’]re\ (?:absolutely\ )?right|i\ (?:apologi[sz]e|understand|am\ sorry)|i['’]m\ sorry|sorry)\b
    (?![^\n:.!]{0,120}\b(?:can['’]?t|cannot|won['’]t|unable)\b)             # that is the reply itself
    [^\n:.!]{0,120}(?:[.!,;–—-]|(?=\n))\s{1,4}
)"""
# What addresses the human or names another addressee belongs to a reply: "… that you can send", "… to the landlord".
_CLAUSE = r"""(?:,?[^\S\n](?!
      you\b
      |your(?:s|self)?\b(?!\ (?:question|request|message|prompt))
      |(?:to|for)\ (?:an?|the|her|his|their|this|that|these|those|my)\b(?!\ (?:human|user|question|request|prompt)\b)
    )[^\s:]+){0,20}?"""
_END = r"[*_]{0,2}:[*_]{0,2}(?:[^\S\n]*(?:\n|$)|[^\S\n]+)"
_ANNOUNCEMENT = re.compile(
    rf"""[*_#]{{0,4}}\ ?{_OPENER}{{0,2}}
    (?:
      (?:here['’]s|here\ is|below\ is|this\ is|the\ following\ is)\ (?:the|an?|my|one)\ {_WHAT}
      |(?:here['’]s|here\ is)\ how\ the\ assistant\ (?:could|would|should|might|can)\ (?:reply|respond|answer)\b
      |(?:i['’]ve|i\ have|i['’]ll|i\ will|i\ would|i['’]d|let\ me|i\ can)\ (?:now\ )?
       (?:{_REWORDED}|rewrite|revise|reword|rephrase)\ (?:the|my|that|this)\ {_WORDS}{_REPLY}\b
      |(?:the|my|an?)\ {_WHAT}\ (?:(?:would|could|might|should)\ (?:be|read)|reads|is(?=[^\n:]{{0,99}}:[*_]*[ ]?\n))
    )
    {_CLAUSE}{_END}""",
    re.IGNORECASE | re.VERBOSE,
)
_NAME = rf"""(?:the\ |my\ )?
    (?:(?:{_REWRITTEN}|final)\ (?:response|reply)|{_REWORDED}\ (?:answer|version|assistant\ {_REPLY}))"""
_LABEL = re.compile(
    rf"(?:[*_#]{{0,6}}\ ?{_NAME}{_END}|(?:\*\*|\#{{1,6}}\ ){_NAME}[*_]{{0,2}}[^\S\n]*\n)",
    re.IGNORECASE | re.VERBOSE,
)
_BARE_LABEL = re.compile(
    rf"[*_#]{{0,6}}\ ?(?:(?:new\ )?assistant|response|reply|critique|{_REWORDED}|{_REWRITING}){_END}",
    re.IGNORECASE | re.VERBOSE,
)
_LABELLED_LINE = re.compile(r"^[^\S\n]*[*_#>-]{0,6}[^\S\n]?[A-Za-z][A-Za-z ]{0,24}[*_]{0,2}:", re.MULTILINE)
_FENCE = re.compile(r"(?P<marks>`{3,}|~{3,}|\"{3,})[^\S\n]*(?P<language>\w*)[^\S\n]*\n")
_RULE = re.compile(r"(?P<marks>-{3,}|\*{3,}|_{3,})[^\S\n]*\n")
_QUOTED = re.compile(r"(?P<marks>\"{3,}|\")[^\"]++(?P=marks)|“[^“”]++”")
_TEXT_LANGUAGES = ("", "text", "txt", "markdown", "md", "plaintext")


def strip_preamble(text: str) -> tuple[str, str]:
    """Return the reply without its preamble and wrapping, and what was cut off.

    The reply is one piece of `text`, and calling the function on it again changes nothing. The second value is empty
    where nothing was cut; cuts at both ends are joined by ` … `. A text that would be left empty is returned as it is.
    """
    start, end = first, last = _trimmed(text, 0, len(text))
    labels = _Labels(text)
    announced = False
    while True:
        after = _after_words(text, start, end, labels)
        if after is not None:
            announced, inner = True, _trimmed(text, after, end)
        elif (inside := _inside(text, start, end, announced)) is not None:
            inner = _trimmed(text, *inside)
        else:
            break
        if inner[0] == inner[1]:
            return text.strip(), ""
        start, end = inner
    cuts = (text[first:start].strip(), text[end:last].strip())
    return text[start:end], " … ".join(filter(None, cuts))


class _Labels:
    """The lines of a text that begin with a label such as `Human:`."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def last(self) -> int:
        """Where the last of them begins; -1 where there is none."""
        return max((found.start() for found in _LABELLED_LINE.finditer(self._text)), default=-1)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _after_words(text: str, start: int, end: int, labels: _Labels) -> int | None:
    """Where the text goes on after an announcement or a label; None where there is neither."""
    found = _ANNOUNCEMENT.match(text, start, end) or _LABEL.match(text, start, end)
    if found is None and (bare := _BARE_LABEL.match(text, start, end)) and labels.last < bare.end():
        found = bare
    return found.end() if found else None


def _inside(text: str, start: int, end: int, announced: bool) -> tuple[int, int] | None:
    """The span between marks around all of the text; None where there are none."""
    if fence := _FENCE.match(text, start, end):
        ours = fence["marks"][0] == '"'
        if (ours or announced) and fence["language"].lower() in _TEXT_LANGUAGES:
            return _between(text, fence["marks"], fence.end(), end)
        return None
    if announced and (rule := _RULE.match(text, start, end)):
        return rule.end(), end - len(rule["marks"]) * text.endswith("\n" + rule["marks"], rule.end() - 1, end)
    if quoted := _QUOTED.fullmatch(text, start, end):
        width = len(quoted["marks"] or "“")
        return start + width, end - width
    return None


def _between(text: str, marks: str, start: int, end: int) -> tuple[int, int] | None:
    """The lines from `start` to a last line of `marks`; None where a line between begins with them."""
    close = end - len(marks)
    line = re.compile(rf"^[^\S\n]*{re.escape(marks)}", re.MULTILINE)
    found = line.search(text, start, end)
    return (start, close) if found and found.end() == end else None
