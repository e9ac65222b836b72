"""guidekit: inference-time guidance and reward search for any pre-trained diffusion model.

import guidekit as gk
result = gk.sample(model, 64, guides=[gk.CFG(3.0), gk.FKSteering(reward, alpha=0.1)], cond="HepG2")
"""

import os.path as _path
from importlib.util import find_spec as _find_spec

import lazy_loader as _loader

__version__ = "0.1.0"


def _check_rewards() -> None:
    """Raise where a file or folder of the user's hides the package `rewards`, which lies beside this one."""
    found = _find_spec("rewards")
    if found is None:
        raise ImportError("guidekit needs its package 'rewards', which is missing: install guidekit anew")
    folder = next(iter(found.submodule_search_locations or []), None)
    own = _path.join(_path.dirname(_path.dirname(_path.abspath(__file__))), "rewards")
    if folder is None or not _path.isdir(own) or not _path.samefile(folder, own):
        raise ImportError(
            f"{folder or found.origin} hides the package 'rewards' that comes with guidekit. Give it another name, "
            "like my_rewards, and import it by that name"
        )


_check_rewards()


def _names(file: str) -> dict[str, list[str]]:
    """The names that a file imports, by module. A star stands for all that the package's __init__ imports in turn."""
    import ast
    from pathlib import Path

    here, found = Path(__file__).parent, {}
    for node in ast.parse((here / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            every = _names(f"{node.module}/__init__.py") if names == ["*"] else {"": names}
            found.setdefault(node.module or "", []).extend(name for part in every.values() for name in part)
    return found


# Names, and where they come from, are in __init__.pyi. They are imported when they are first used, so that
# `guidekit --help` need not wait for torch. No module has the name of a function in it.
__getattr__, __dir__, __all__ = _loader.attach(__name__, (_found := _names("__init__.pyi")).pop(""), _found)
