"""Where the files that ship with the package lie: constitutions, prompt templates and prompt sets."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def asset_dir(kind: str) -> Path:
    """Folder of the shipped `constitutions` or `prompts`: inside an installed wheel, or beside `cai/` in a checkout."""
    installed = _PACKAGE / "assets" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def find_asset(name: str, kind: str, suffix: str) -> Path | None:
    """Find the shipped file for `name`: `hhh`, `hhh.yaml` or `constitutions/hhh.yaml` all mean the same one.

    `kind` may have a subfolder (`prompts/sets`). Returns None where nothing of that name ships.
    """
    wanted = Path(name)
    inside = name.removesuffix(suffix)
    if wanted.parent != Path():
        if wanted.parent != Path(kind):
            return None
        inside = wanted.name.removesuffix(suffix)
    root, *below = Path(kind).parts
    path = asset_dir(root).joinpath(*below, inside + suffix)
    return path if path.is_file() else None


def asset_names(kind: str, suffix: str) -> list[str]:
    """Names that `find_asset` knows, sorted."""
    root, *below = Path(kind).parts
    folder = asset_dir(root).joinpath(*below)
    return sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}"))
