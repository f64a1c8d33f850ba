"""Prompts are files: sandboxed, strict Jinja2 templates whose blocks become the messages of a chat.

A template's block is the content of one message; the turns themselves are built here. So no text that a model or a
data set brought can open or close a turn. Inside a message such text stands in a fence that is longer than any fence
within it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai import errors
from cai.assets import asset_dir
from cai.constitution import Constitution, CritiqueRevisionExample, Principle
from cai.records import Message, Prompt
from cai.strict_yaml import nearest

TRANSCRIPT_STOP = ("\n\nHuman:", "\n\nAssistant:")
"""Where a base model's reply ends: it starts to write the next turn."""

_BEFORE_MARK = re.compile(r"(?<!\s)\s++(?=(?:Human|Assistant):)")
_MARK = re.compile(r"(?:Human|Assistant):")
_RUN = re.compile(r'"{3,}')

_BLOCKS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "draft.j2": {"system": frozenset({"system", "turn"}), "user": frozenset({"system", "turn"})},
    "critique.j2": {
        "system": frozenset(),
        "user": frozenset({"conversation", "principle", "may_be_clean"}),
        "request": frozenset({"principle"}),
    },
    "revision.j2": {
        "user": frozenset({"conversation", "principle", "critique"}),
        "request": frozenset({"principle"}),
    },
}
"""Blocks of each template, and the variables that each of them may use."""

_SPEAKERS: Mapping[str, str] = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""What quoted turns are headed by."""

_RENDERING = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What an expression in a template can raise."""

_CLEAN = re.compile(
    r"""\W*+(?:critique\W++)?
    (?:(?:there\ (?:are|is)|i\ (?:see|find|found))\ )?no\ (?:issues?|problems?|concerns?)
    (?:\ (?:were\ )?found|\ here|\ to\ report)?
    (?:\ (?:with|in)\ (?:the|this)\ (?:assistant['’]s\ )?(?:last\ )?(?:reply|response|answer))?
    [^\w\n?]*+(?:\n|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_OBJECTION = re.compile(r"\W*+(?:however|but|although|though|still|yet|nevertheless|that said|except)\b", re.IGNORECASE)


def transcript(messages: Sequence[Message]) -> str:
    """Write a conversation as `\\n\\nHuman: …\\n\\nAssistant: …`, open at the assistant's next turn.

    This is the form of the hh-rlhf data and of prompts for plain base models. A blank line before a mark of a turn
    inside a message becomes a single line break, so that the mark does not open a turn.
    """
    parts = []
    for message in messages:
        text = _BEFORE_MARK.sub(_one_line_break, message.content.strip())
        label = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}[message.role]
        if not label and _MARK.match(text):
            label = "System: "
        parts.append(f"\n\n{label}{text}")
    return "".join(parts) + "\n\nAssistant:"


def _one_line_break(space: re.Match[str]) -> str:
    return "\n" if space[0].count("\n") > 1 else space[0]


def fenced(text: str) -> str:
    """Put text between two lines of quotation marks, more of them than stand in a row anywhere within."""
    fence = '"' * (1 + max(map(len, _RUN.findall(text)), default=2))
    return f"{fence}\n{text.strip()}\n{fence}"


def found_nothing(critique: str) -> bool:
    """Whether a critique says that the reply needs no change: its first line is `No issues.` or the like.

    In doubt it does not: a line that goes on (`No issues with privacy, but …`) or is taken back by the next (`However,
    …`) names an issue. A revision too many does little harm.
    """
    clean = _CLEAN.match(critique)
    return clean is not None and _OBJECTION.match(critique, clean.end()) is None


class Templates:
    """The chats of the critique–revision chain.

    The layout is the paper's (Bai et al. 2022, section 3.1): the request for a critique follows the conversation, the
    request for a revision follows the critique, worked examples stand before both. Critique and revision of one round
    share all messages but the last two, so an engine with a prefix cache reads them once.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Load the templates of `folder`; a file that is not there is taken from the shipped ones.

        Every block is rendered once with sample values, so that a faulty template stops a run before its first call.

        Raises:
            TemplateError: a template cannot be read, parsed or rendered, lacks a block, or has text outside of them.
        """
        shipped = asset_dir("prompts") / "templates"
        if folder is not None and not folder.is_dir():
            raise errors.TemplateError(f"there is no template folder {folder}")
        self._environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            autoescape=False,
        )
        self._environment.globals.clear()
        self._environment.filters["fenced"] = lambda text: fenced(str(text))  # str() makes an undefined one speak up
        self._environment.filters["speaker"] = _SPEAKERS.__getitem__
        self._templates: dict[str, tuple[Path, Template]] = {}
        digest = hashlib.sha256()
        for name in _BLOCKS:
            own = folder / name if folder is not None else None
            path = own if own is not None and own.is_file() else shipped / name
            source = self._load(path)
            digest.update(f"{name}\0{source}\0".encode())
        self.sha256 = digest.hexdigest()
        """Hash of all templates in use; stands in each record."""
        self._compiled = lru_cache(maxsize=4096)(self._environment.from_string)
        self._try_out()

    def _load(self, path: Path) -> str:
        try:
            source = path.read_text(encoding="utf-8-sig")
            tree = self._environment.parse(source)
            self._templates[path.name] = path, self._environment.from_string(source)
        except (OSError, UnicodeDecodeError) as error:
            raise errors.TemplateError(f"{path} cannot be read: {error}") from None
        except TemplateError as error:
            raise errors.TemplateError(f"{path}:{getattr(error, 'lineno', 1)}: bad template: {error.message}") from None
        except RecursionError:
            raise errors.TemplateError(f"{path}: bad template: nested too deeply") from None
        if next(meta.find_referenced_templates(tree), "") != "":
            raise errors.TemplateError(f"{path}: loads another template; each file stands alone")
        self._check_outside(path, tree)
        known = _BLOCKS[path.name]
        found = {block.name: block for block in tree.find_all(nodes.Block)}
        for name, block in found.items():
            if name not in known:
                raise errors.TemplateError(f"{path}:{block.lineno}: unknown block `{name}`{nearest(name, [*known])}")
        if missing := [name for name in known if name not in found]:
            raise errors.TemplateError(f"{path}: lacks the block {', '.join(missing)}")
        for name, block in found.items():
            alone = nodes.Template([block], lineno=1, environment=self._environment)
            if unknown := sorted(meta.find_undeclared_variables(alone) - known[name]):
                hints = ", ".join(f"`{variable}`{nearest(variable, sorted(known[name]))}" for variable in unknown)
                raise errors.TemplateError(f"{path}: the block {name} uses unknown variables: {hints}")
        return source

    def _check_outside(self, path: Path, tree: nodes.Template) -> None:
        """Blocks are rendered by themselves, so what stands beside them would never be seen."""
        for node in tree.body:
            parts = node.nodes if isinstance(node, nodes.Output) else [node]
            for part in parts:
                blank = isinstance(part, nodes.TemplateData) and not part.data.strip()
                if not blank and not isinstance(part, nodes.Block):
                    raise errors.TemplateError(
                        f"{path}:{part.lineno}: stands outside of the blocks, which alone are used"
                    )

    def _try_out(self) -> None:
        """Render every block in every way in which a run renders it."""
        talk = (Message(role="user", content="sample"), Message(role="assistant", content="sample"))
        for system in (None, "sample"):
            self.draft(Prompt(id="sample", messages=talk[:1]), system)
        self._block("critique.j2", "system")
        for principle in (Principle(id="a", text="sample"), Principle(id="b", critique="sample", revision="sample")):
            self._requests(principle, 1)
            for may_be_clean in (False, True):
                self.critique(talk, principle, may_be_clean)
            for critique in (None, "sample"):
                self.revision(talk, principle, critique)

    def draft(self, prompt: Prompt, system: str | None) -> tuple[Message, ...]:
        """The chat whose reply is the draft, or the answer to a helpful prompt.

        A system turn of the prompt's own follows the run's `system` in one turn: chat templates take one at most.
        """
        *before, last = prompt.messages
        values = {"turn": last.content, "system": system or ""}
        heads = [self._block("draft.j2", "system", **values)]
        if before and before[0].role == "system":
            heads.append(before.pop(0).content)
        head = "\n\n".join(filter(None, heads))
        opening = [Message(role="system", content=head)] if head else []
        return (*opening, *before, Message(role="user", content=self._block("draft.j2", "user", **values)))

    def opening(self, constitution: Constitution, shots: int | None, with_critique: bool) -> tuple[Message, ...]:
        """What stands before every critique and revision: the system turn and `shots` worked examples (None: all).

        Raises:
            TemplateError: a principle that may be drawn later cannot be phrased.
        """
        for principle in constitution.principles:
            self.phrase(principle, None, 1, 1)
        system = self._block("critique.j2", "system")
        messages = [Message(role="system", content=system)] if system else []
        for example in constitution.examples.critique_revision[:shots]:
            messages += self._example(constitution, example, with_critique)
        return tuple(messages)

    def critique(self, conversation: Sequence[Message], principle: Principle, may_be_clean: bool) -> Message:
        """The request for a critique of the last reply in `conversation`."""
        return self._message("critique.j2", conversation, principle, may_be_clean=may_be_clean)

    def revision(self, conversation: Sequence[Message], principle: Principle, critique: str | None) -> Message:
        """The request for a revision; with a critique it follows that critique, else it stands alone."""
        return self._message("revision.j2", conversation, principle, critique=critique)

    def requests(self, constitution: Constitution, rounds: int) -> dict[str, tuple[str, str]]:
        """Principle id → the sentences that ask for critique and revision, as they stand in the messages."""
        serving = (principle for principle in constitution.principles if principle.serves("critique"))
        return {principle.id: self._requests(principle, rounds) for principle in serving}

    def _requests(self, principle: Principle, rounds: int) -> tuple[str, str]:
        phrased = self.phrase(principle, None, 1, rounds)
        return (
            self._block("critique.j2", "request", principle=phrased),
            self._block("revision.j2", "request", principle=phrased),
        )

    def phrase(self, principle: Principle, topic: str | None, round_: int, rounds: int) -> Principle:
        """The principle with the variables of its texts filled in. White space in `topic` becomes single spaces.

        Raises:
            TemplateError: a text cannot be rendered.
        """
        values = {"topic": " ".join((topic or "").split()), "round": round_, "rounds": rounds}
        texts = {}
        for part in ("text", "critique", "revision", "comparison"):
            text = getattr(principle, part)
            if text is None or "{" not in text:
                continue
            try:
                texts[part] = self._compiled(text).render(values).strip()
            except _RENDERING as error:
                message = f"principle `{principle.id}`, {part}: the text cannot be filled in: {_reason(error)}"
                raise errors.TemplateError(message) from None
        return principle.model_copy(update=texts) if texts else principle

    def _example(
        self, constitution: Constitution, example: CritiqueRevisionExample, with_critique: bool
    ) -> list[Message]:
        principle = self.phrase(constitution.principle(example.principle), None, 1, 1)
        conversation = (*example.conversation, Message(role="assistant", content=example.response))
        if not with_critique:
            request = self.revision(conversation, principle, None)
            return [request, Message(role="assistant", content=example.revision)]
        return [
            self.critique(conversation, principle, may_be_clean=False),
            Message(role="assistant", content=example.critique),
            self.revision(conversation, principle, example.critique),
            Message(role="assistant", content=example.revision),
        ]

    def _message(
        self, template: str, conversation: Sequence[Message], principle: Principle, **values: object
    ) -> Message:
        text = self._block(template, "user", conversation=conversation, principle=principle, **values)
        return Message(role="user", content=text)

    def _block(self, template: str, block: str, **values: object) -> str:
        path, loaded = self._templates[template]
        try:
            return "".join(loaded.blocks[block](loaded.new_context(values))).strip()
        except _RENDERING as error:
            raise errors.TemplateError(f"{path}: the block {block} cannot be rendered: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    message = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return str(message).rstrip(".")
