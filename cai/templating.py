"""Prompts are files: sandboxed, strict Jinja2 templates whose blocks become the messages of a chat."""

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai import errors
from cai.assets import asset_dir
from cai.principles import Principle
from cai.strict_yaml import nearest

Blocks = Mapping[str, Mapping[str, frozenset[str]]]
"""Template file → block → the variables that the block may use."""

_RUN = re.compile(r'"{3,}')

_SPEAKERS: Mapping[str, str] = {"user": "Human", "assistant": "Assistant", "system": "System"}
"""What quoted turns are headed by."""

_RENDERING = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What an expression in a template can raise."""


def fenced(text: str) -> str:
    """Put text between two lines of quotation marks, more of them than stand in a row anywhere within."""
    fence = '"' * (1 + max(map(len, _RUN.findall(text)), default=2)) if '"""' in text else '"""'
    return f"{fence}\n{text.strip()}\n{fence}"


class TemplateFiles:
    """A set of template files, loaded and checked."""

    def __init__(self, blocks: Blocks, folder: Path | None) -> None:
        """Load the files named in `blocks` from `folder`; one that is not there is taken from the shipped ones.

        Raises:
            TemplateError: a template cannot be read or parsed, lacks a block, or has text outside of them.
        """
        self._blocks = blocks
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
        for name in blocks:
            own = folder / name if folder is not None else None
            path = own if own is not None and own.is_file() else shipped / name
            source = self._load(path)
            digest.update(f"{name}\0{source}\0".encode())
        self.sha256 = digest.hexdigest()
        """Hash of all these files."""
        self._compiled = lru_cache(maxsize=4096)(self._environment.from_string)

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
        known = self._blocks[path.name]
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

    def phrase(self, principle: Principle, topic: str | None, round_: int, rounds: int) -> Principle:
        """The principle with the variables of its texts filled in. White space in `topic` becomes single spaces.

        Raises:
            TemplateError: a text cannot be rendered.
        """
        values = {"topic": " ".join((topic or "").split()), "round": round_, "rounds": rounds}
        texts = {}
        for part in ("text", "critique", "revision", "comparison", "question"):
            text = getattr(principle, part)
            if text is None or "{" not in text:
                continue
            try:
                texts[part] = self._compiled(text).render(values).strip()
            except _RENDERING as error:
                message = f"principle `{principle.id}`, {part}: the text cannot be filled in: {_reason(error)}"
                raise errors.TemplateError(message) from None
        return principle.model_copy(update=texts) if texts else principle

    def block(self, template: str, block: str, **values: object) -> str:
        """Render one block of a file, without white space around it.

        Raises:
            TemplateError: it cannot be rendered.
        """
        path, loaded = self._templates[template]
        try:
            return "".join(loaded.blocks[block](loaded.new_context(values))).strip()
        except _RENDERING as error:
            raise errors.TemplateError(f"{path}: the block {block} cannot be rendered: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    message = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
    return str(message).rstrip(".")
