"""guidekit: inference-time guidance and reward search for any pre-trained diffusion model.

import guidekit as gk
result = gk.sample(model, 64, guides=[gk.CFG(3.0), gk.FKSteering(reward, alpha=0.1)], cond="HepG2")
"""

import lazy_loader as _loader

__version__ = "0.1.0"


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
