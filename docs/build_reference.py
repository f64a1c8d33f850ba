"""The reference, `docs/reference/*.md`: what the click commands, the configurations and the records say of themselves.

python docs/build_reference.py            write the pages anew
python docs/build_reference.py --check    fail where a page is not what the code says
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from pydoc import locate

import click
from pydantic import BaseModel
from reference_files import FILE_PAGES, FilePage
from reference_models import models_in, prose, table_of, typed_default, words_of_type

from cai.cli import cli

PAGES = Path(__file__).parent / "reference"
COMMAND = "python docs/build_reference.py"
SHARED = "configuration"
"""Page of the sections that the configurations of several commands have."""

CONFIGS: Mapping[str, str] = {
    "critique-revise": "cai.critique.CritiqueReviseConfig",
    "sample": "cai.feedback.sampling.SampleConfig",
    "contrast": "cai.feedback.contrast.ContrastConfig",
    "label": "cai.feedback.labelling.LabelConfig",
    "judge-check": "cai.feedback.judge_check.JudgeCheckConfig",
    "judge-obedience": "cai.evaluate.obedience.ObedienceConfig",
    "rate": "cai.human.page_directory.RateConfig",
    "export": "cai.human.exporting.ExportConfig",
    "import hh-rlhf": "cai.human.importing.ImportConfig",
    "import label-studio": "cai.human.importing.ImportConfig",
    "import llm-swarm": "cai.human.importing.ImportConfig",
    "import pairs": "cai.human.importing.ImportConfig",
    "train sft": "cai.train.config.SftConfig",
    "train reward": "cai.train.config.RewardConfig",
    "train dpo": "cai.train.config.DpoConfig",
    "train ppo": "cai.train.ppo.config.PpoConfig",
    "score": "cai.train.score_config.ScoreConfig",
    "evaluate": "cai.evaluate.config.EvaluateConfig",
    "red-team": "cai.redteam.config.RedTeamConfig",
    "iterate": "cai.iterate.config.IterateConfig",
    "compare": "cai.compare.config.CompareConfig",
    "monitor": "cai.train.monitor.config.MonitorConfig",
}
"""The configuration that each command with `--config` reads."""

_HEAD = f"<!-- Written by `{COMMAND}` from the code. Do not edit. -->\n\n"


def commands(group: click.Group = cli, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """All commands by their words after `cai`, groups before what is in them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield above + name, command
        if isinstance(command, click.Group):
            yield from commands(command, f"{above}{name} ")


def takes_config(command: click.Command) -> bool:
    """Whether a command has `--config`."""
    return any("--config" in parameter.opts for parameter in command.params)


def model(path: str) -> type[BaseModel]:
    """The class of that dotted path."""
    found = locate(path)
    assert isinstance(found, type), f"there is no model {path}"
    assert issubclass(found, BaseModel), f"{path} is no model"
    return found


def build() -> dict[str, str]:
    """The text of every page by its file name."""
    every = dict(commands())
    top = [words for words in every if " " not in words]
    groups = {name: [words for words in every if words.split()[0] == name] for name in top}
    sections = {name: list(_sections(words)) for name, words in groups.items()}
    used: dict[type[BaseModel], set[str]] = {}
    for name, found in sections.items():
        for section in found:
            used.setdefault(section, set()).add(name)
    shared = [section for section, names in used.items() if len(names) > 1]
    pages = {
        f"{name}.md": _command_page(name, {words: every[words] for words in groups[name]}, sections[name], shared)
        for name in top
    }
    pages[f"{SHARED}.md"] = _shared_page(shared, used)
    places = {
        section: f"{SHARED if section in shared else next(iter(names))}.md#{section.__name__.lower()}"
        for section, names in used.items()
    }
    pages |= {f"{page.name}.md": _file_page(page, places) for page in FILE_PAGES}
    pages["README.md"] = _index({name: every[name] for name in top})
    return {name: _HEAD + text.rstrip() + "\n" for name, text in pages.items()}


def differences(pages: Mapping[str, str], folder: Path) -> list[str]:
    """What is wrong with the pages that lie in `folder`, a line each."""
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
    lines = []
    for name in sorted(pages.keys() | there.keys()):
        if name not in there:
            lines.append(f"{folder / name} is missing")
        elif name not in pages:
            lines.append(f"{folder / name} belongs to nothing that there is")
        elif pages[name] != there[name]:
            lines.append(f"{folder / name} is not what the code says: {_first_difference(there[name], pages[name])}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or check them."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {COMMAND} [--check]", file=sys.stderr)
        return 2
    pages = build()
    if arguments:
        found = differences(pages, PAGES)
        print("\n".join([*found, f"renew the reference with: {COMMAND}"] if found else ["the reference is fresh"]))
        return bool(found)
    PAGES.mkdir(exist_ok=True)
    for path in PAGES.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (PAGES / name).write_text(text, encoding="utf-8")
    return 0


def _first_difference(old: str, new: str) -> str:
    lines = zip([*old.splitlines(), "(nothing)"], [*new.splitlines(), "(nothing)"], strict=False)
    number, (was, is_) = next((number, pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1])
    return f"line {number} has {was[:100]!r} for {is_[:100]!r}"


def _sections(words: Iterable[str]) -> Iterator[type[BaseModel]]:
    """Models below the configurations of the commands `words`, each once, outer ones first."""
    tops = [model(CONFIGS[word]) for word in words if word in CONFIGS]
    found = dict.fromkeys(one for top in tops for one in models_in(top))
    yield from (one for one in found if one not in tops)


def _index(top: Mapping[str, click.Command]) -> str:
    rows = [(f"[`cai {name}`]({name}.md)", prose(_paragraphs(command)[0])) for name, command in top.items()]
    files = [(f"[{page.title}]({page.name}.md)", prose(page.about)) for page in FILE_PAGES]
    return (
        "# Reference\n\nEvery command, every key of a configuration file and every file of a run, written from the "
        f"code by `{COMMAND}`. A test fails when a page is not what the code says.\n\n## Commands\n\n"
        + table_of(("command", "what it does"), rows)
        + f"\nSections that several configuration files have: [configuration]({SHARED}.md).\n\n## Files\n\n"
        + table_of(("page", "what it has"), files)
    )


def _command_page(
    name: str,
    found: Mapping[str, click.Command],
    sections: Sequence[type[BaseModel]],
    shared: Sequence[type[BaseModel]],
) -> str:
    links = {section.__name__: f"{SHARED}.md#{section.__name__.lower()}" for section in shared}
    links |= {section.__name__: f"#{section.__name__.lower()}" for section in sections if section not in shared}
    text = ""
    for words, command in found.items():
        level = "#" if words == name else "##"
        text += f"{level} cai {words}\n\n```\n{_usage(words, command)}\n```\n\n"
        text += "".join(f"{prose(paragraph)}\n\n" for paragraph in _paragraphs(command))
        options = [_option(parameter) for parameter in command.params if isinstance(parameter, click.Option)]
        if options:
            text += table_of(("option", "what it does"), options) + "\n"
        if words in CONFIGS:
            text += f"{level}# Configuration file of cai {words}\n\n"
            first = next(other for other in found if CONFIGS.get(other) == CONFIGS[words])
            same = f"The same as that of [cai {first}](#configuration-file-of-{_slug(f'cai {first}')}).\n\n"
            text += _described(model(CONFIGS[words]), links) if first == words else same
    own = [section for section in sections if section not in shared]
    if own:
        text += "## Sections of the configuration\n\n"
    return text + "".join(f"### {section.__name__}\n\n" + _described(section, links) for section in own)


def _shared_page(shared: Sequence[type[BaseModel]], used: Mapping[type[BaseModel], set[str]]) -> str:
    links = {section.__name__: f"#{section.__name__.lower()}" for section in shared}
    text = (
        "# Sections of configuration files\n\nA configuration file is YAML: `cai COMMAND --config FILE`. Every key can "
        "be left out where the table gives a default, an unknown key is an error, and options of the command line go "
        "over the file. These sections stand in the files of several commands.\n\n"
    )
    for section in sorted(shared, key=lambda one: one.__name__):
        where = ", ".join(f"[`cai {name}`]({name}.md)" for name in sorted(used[section]))
        text += f"## {section.__name__}\n\nOf {where}.\n\n" + _described(section, links)
    return text


def _file_page(page: FilePage, places: Mapping[type[BaseModel], str]) -> str:
    """The page of some files; sections of configurations stand elsewhere, at `places`."""
    text = f"# {page.title}\n\n{page.text.rstrip()}\n\n"
    tops = {path: model(path) for path in dict.fromkeys(file.model for file in page.files)}
    below = dict.fromkeys(part for top in tops.values() for part in models_in(top))
    parts = [one for one in below if one not in tops.values() and one not in places]
    names = [one.__name__ for one in (*tops.values(), *parts)]
    assert len(names) == len(set(names)), f"two records of the page {page.name} have one name: {sorted(names)}"
    links = {one.__name__: places[one] for one in below if one in places}
    links |= {one.__name__: f"#{one.__name__.lower()}" for one in parts}
    links |= {tops[file.model].__name__: f"#{_slug(file.name)}" for file in reversed(page.files)}
    for file in page.files:
        text += f"## {file.name}\n\n" + _described(tops[file.model], links, defaults=page.by_hand)
    if parts:
        text += "## Parts\n\n"
    return text + "".join(f"### {part.__name__}\n\n" + _described(part, links, defaults=page.by_hand) for part in parts)


def _described(section: type[BaseModel], links: Mapping[str, str], *, defaults: bool = True) -> str:
    """The docstring of a model and a table of its keys."""
    about = (section.__doc__ or "").strip()
    text = "".join(f"{prose(paragraph)}\n\n" for paragraph in re.split(r"\n\s*\n", about)) if about else ""
    rows = []
    for field in words_of_type(section, links):
        default = (typed_default(field.default),) if defaults else ()
        rows.append((f"`{field.key}`", field.type, *default, prose(field.about)))
    head = ("key", "type", "default", "meaning") if defaults else ("key", "type", "meaning")
    return text + table_of(head, rows) + "\n"


def _paragraphs(command: click.Command) -> list[str]:
    return re.split(r"\n\s*\n", (command.help or "").strip())


def _usage(words: str, command: click.Command) -> str:
    arguments = [_argument(one) for one in command.params if isinstance(one, click.Argument)]
    options = ["[OPTIONS]"] if any(isinstance(one, click.Option) for one in command.params) else []
    further = ["COMMAND …"] if isinstance(command, click.Group) else []
    return " ".join(["cai", words, *options, *arguments, *further])


def _argument(argument: click.Argument) -> str:
    if argument.metavar:
        return argument.metavar
    name = (argument.name or "").upper().replace("_", "-")
    name += "…" if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _option(option: click.Option) -> tuple[str, str]:
    """The two cells of an option. Nothing of it comes from click's own layout, which changes with its version."""
    names = ", ".join(option.opts)
    if option.secondary_opts:
        names += " / " + ", ".join(option.secondary_opts)
    help_ = [option.help or ""]
    if isinstance(option.type, click.Choice):
        help_.append(f"One of {', '.join(f'`{choice}`' for choice in option.type.choices)}.")
    if isinstance(option.type, click.IntRange | click.FloatRange):
        low, high = option.type.min, option.type.max
        help_ += [f"At least {low}."] if low is not None else []
        help_ += [f"At most {high}."] if high is not None else []
    if option.required:
        help_.append("Required.")
    if option.show_default is True:
        help_.append(f"Default: {option.default}.")
    value = "" if option.is_flag else f" {option.metavar or _KINDS.get(option.type.name, option.type.name.upper())}"
    return f"`{names}{value}`", prose(" ".join(help_))


_KINDS: Mapping[str, str] = {"choice": "CHOICE", "integer range": "INTEGER", "float range": "FLOAT"}


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
