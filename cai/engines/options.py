"""Options of other engines, given to one that cannot honour them, are errors and not silently ignored."""

from collections.abc import Mapping

from cai.config import EngineConfig
from cai.errors import ConfigError, Problem


def refuse_options(config: EngineConfig, unused: Mapping[str, str]) -> None:
    """Check that no option in `unused` (name → what to do instead) was given.

    Raises:
        ConfigError: with one problem for each that was.
    """
    problems = [
        Problem(f"has no effect with the engine `{config.engine}`; {advice}", key=name)
        for name, advice in unused.items()
        if name in config.changed
    ]
    if problems:
        raise ConfigError(problems)
