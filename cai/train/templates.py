"""Chat templates for models without one: two that ship, or a file of the user's own."""

from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext

from cai.assets import asset_names, find_asset
from cai.errors import ConfigError

CHAT_TEMPLATES = "prompts/chat"
"""Where the shipped chat templates lie."""


class _Generation(jinja2.ext.Extension):
    """Transformers' tag around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def load_template(name: str) -> str:
    """The text of a shipped template (`chatml`, `transcript`), or of the file `name`.

    Raises:
        ConfigError: there is neither, or it is not a Jinja template.
    """
    path = Path(name) if Path(name).is_file() else find_asset(name, CHAT_TEMPLATES, ".jinja")
    if path is None:
        known = ", ".join(asset_names(CHAT_TEMPLATES, ".jinja"))
        raise ConfigError(f"there is no chat template {name}; name a Jinja file, or one that ships: {known}")
    try:
        text = path.read_text()
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: is not a Jinja template: {error.message}") from None
    return text
