"""`guidekit bench`: a group of commands, of which one is meant where none is named."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Bench(TyperGroup):
    """`guidekit bench MODEL` is `guidekit bench guides MODEL`."""

    usual = "guides"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named or not args else [self.usual, *args])
