"""Rewards from a Python function of the user's."""

import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cai.data.files import file_sha256
from cai.errors import ConfigError, StageError
from cai.records import Message
from cai.strict_yaml import nearest
from cai.train.ppo.rewards import Scored, scored


@dataclass(frozen=True)
class RewardFunction:
    """A function that was found."""

    place: str
    """As the user named it: `FILE.py:NAME` or `package.module:NAME`."""
    call: Callable[[list[list[dict[str, str]]], list[str]], object]
    file: str
    """The Python file that it stands in."""
    sha256: str
    """Of that file; not of others that it imports."""


def find_function(place: str) -> RewardFunction:
    """Import a function; code at the head of its file is run.

    Raises:
        ConfigError: there is no such file, module or name, it cannot be imported, or it does not take prompts and
            responses.
    """
    where, _, name = place.rpartition(":")
    module, file, digest = _read(Path(where).expanduser(), place) if where.endswith(".py") else _imported(where, place)
    function = getattr(module, name, None)
    if function is None:
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise ConfigError(f"{file} has no {name}{nearest(name, names) if names else ''}")
    if not callable(function):
        raise ConfigError(f"{place} is no function but of the type {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{place} is an `async` function; a reward function returns its numbers at once")
    try:
        inspect.signature(function).bind([], [])
    except TypeError:
        raise ConfigError(f"{place} must be callable as {name}(prompts, responses), with these two alone") from None
    except ValueError:  # some functions that are not written in Python do not say
        pass
    return RewardFunction(place, function, file, digest)


def _read(path: Path, place: str) -> tuple[ModuleType, str, str]:
    """Run a file as a module of its own. What is hashed is what is run: no compiled copy stands between the two."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; a reward function is FILE.py:NAME") from None
    digest = sha256(source).hexdigest()
    module = ModuleType(f"cai_reward_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look for it there
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{place} cannot be imported: {_said(error, str(path))}") from None
    return module, str(path), digest


def _imported(name: str, place: str) -> tuple[ModuleType, str, str]:
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        advice = "; install it, or name a file: FILE.py:NAME" if missing else ""
        raise ConfigError(f"{place} cannot be imported: {_said(error)}{advice}") from None
    file = getattr(module, "__file__", None)
    if file is None:
        raise ConfigError(f"{place}: {name} has no file, so that its content cannot be recorded; name FILE.py:NAME")
    return module, file, file_sha256(file)


def _said(error: BaseException, file: str | None = None) -> str:
    """Class and first line of an error of the user's code, and the last line of `file` that it passed through."""
    first = next(iter(str(error).splitlines()), "")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    at = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {first:.300}{at}" if first else f"{type(error).__name__}{at}"


class FunctionReward:
    """A function of the user's at work."""

    def __init__(self, name: str, function: RewardFunction) -> None:
        """Take the function; `name` is what metrics call it."""
        self.name = name
        self.details: Mapping[str, Any] = {"function": function.place}
        self._function = function

    def score(self, prompts: Sequence[tuple[Message, ...]], responses: Sequence[str]) -> Scored:
        """Call the function with copies; see `RewardSource.score`."""
        messages = [[{"role": turn.role, "content": turn.content} for turn in prompt] for prompt in prompts]
        try:
            given = self._function.call(messages, list(responses))
        except (Exception, SystemExit) as error:
            raise StageError(
                f"the reward function {self._function.place} failed: {_said(error, self._function.file)}"
            ) from None
        return scored(self.name, np.array(self._numbers(given, len(responses))), [None] * len(responses))

    def close(self) -> None:
        """Nothing to free."""

    def _numbers(self, given: object, wanted: int) -> list[float]:
        """What the function gave, as numbers.

        Raises:
            StageError: it is not a list of as many numbers.
        """
        plain = given.tolist() if hasattr(given, "tolist") else given  # an array of numpy, a tensor of torch
        place = self._function.place
        if not isinstance(plain, Sequence) or isinstance(plain, str):
            raise StageError(
                f"the reward function {place} gave a {type(given).__name__}, where a list of {wanted} numbers is wanted"
            )
        if len(plain) != wanted:
            raise StageError(f"the reward function {place} gave {len(plain)} rewards for {wanted} responses")
        return [self._number(value, position, wanted) for position, value in enumerate(plain, 1)]

    def _number(self, value: Any, position: int, wanted: int) -> float:
        plain = (
            value.item() if getattr(value, "ndim", None) == 0 else value
        )  # numpy and torch have numbers of their own
        if isinstance(plain, bool) or not isinstance(plain, Real):
            raise StageError(
                f"the reward function {self._function.place} gave {plain!r:.40} as reward {position} of {wanted}, and "
                "that is not a number"
            )
        try:
            return float(plain)
        except OverflowError:  # a whole number beyond all floats
            return math.inf
