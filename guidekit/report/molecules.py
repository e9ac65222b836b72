"""Molecules as small SVG pictures, drawn by RDKit, and the properties printed beside them."""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from typing import Any
from xml.etree import ElementTree

from rewards.base import needs

from .svg import element, number

LARGEST = 120  # heavy atoms of the largest molecule that is drawn
SHOWN = {"QED": "QED", "SA": "SA", "logP": "logP", "molecular weight": "MW"}  # rewards, and their names on a card
_WIDTH, _HEIGHT = 220, 150
# RDKit's colours of elements, and replacements that are legible on white and on black
_COLOURS = {
    "#000000": "currentColor",
    "#FF0000": "#d6453d",
    "#0000FF": "#4a7dff",
    "#CCCC00": "#8f7a00",
    "#00CC00": "#2a8f47",
    "#33CCCC": "#16868a",
    "#FF7F00": "#c06000",
    "#7F4C19": "#a5652f",
    "#A01EEF": "#a855e8",
}


@lru_cache(2048)
def draw(smiles: str) -> str | None:
    """The molecule as SVG text of one or two kilobytes, or None if RDKit cannot read it or it is very large."""
    from rewards.molecules.descriptors import blocked, parsed

    mol = parsed(smiles)
    if mol is None or mol.GetNumHeavyAtoms() > LARGEST:
        return None
    rd = needs("rdkit.Chem.Draw.rdMolDraw2D", "all", "drawing molecules")
    canvas = rd.MolDraw2DSVG(_WIDTH, _HEIGHT, -1, -1, True)
    options = canvas.drawOptions()
    options.clearBackground, options.minFontSize, options.fixedBondLength = False, 10, 24
    with blocked():
        rd.PrepareAndDrawMolecule(canvas, mol)
    canvas.FinishDrawing()
    return _smaller(canvas.GetDrawingText(), f"structure of {smiles}")


def properties(smiles: str) -> dict[str, str]:
    """The properties that a chemist looks at first; empty if the sample is not a molecule."""
    from rewards.molecules import QED, SA, LogP, MolWt
    from rewards.molecules.descriptors import blocked, parsed

    mol = parsed(smiles)
    if mol is None:
        return {}
    with blocked():
        return {SHOWN[r.name]: number(_of(r, mol)) for r in (QED(), SA(), LogP(), MolWt())}


def key(smiles: str) -> str:
    """What identifies a molecule: its canonical SMILES, or the text of an invalid sample."""
    from rewards.molecules.descriptors import canonical

    return canonical(smiles) or smiles


def _of(reward: Any, mol: Any) -> float:
    try:
        return float(reward.of(mol))
    except (ValueError, RuntimeError, ArithmeticError):
        return float("nan")


def _smaller(svg: str, label: str) -> str:
    """The same picture with all lines of a colour in one path, and without RDKit's styles."""
    strokes: dict[str, list[str]] = {}
    rest: list[str] = []
    for node in ElementTree.fromstring(re.sub(r"<\?xml.*?\?>", "", svg)):
        style = dict(part.split(":", 1) for part in node.get("style", "").split(";") if ":" in part)
        name = node.tag.rsplit("}", 1)[-1]
        if name == "path" and style.get("fill") == "none":
            strokes.setdefault(_colour(style["stroke"]), []).append(_short(node.get("d", "")))
        elif name == "path":
            rest.append(element("path", d=_short(node.get("d", "")), fill=_colour(style.get("fill", "#000000"))))
        elif name == "text":
            size = style.get("font-size", "10px").removesuffix("px")
            rest.append(element("text", escape(node.text or ""), x=node.get("x"), y=node.get("y"), font_size=size,
                                fill=_colour(style.get("fill", "#000000"))))  # fmt: skip
    lines = [element("path", d="".join(d), stroke=colour) for colour, d in strokes.items()]
    group = element("g", "".join(lines), fill="none", stroke_width="1.5", stroke_linecap="round")
    return element("svg", group + "".join(rest), xmlns="http://www.w3.org/2000/svg", class_="molecule", role="img",
                   viewBox=f"0 0 {_WIDTH} {_HEIGHT}", font_family="Arial,Helvetica,sans-serif",
                   aria_label=label)  # fmt: skip


def _colour(rgb: str) -> str:
    return _COLOURS.get(rgb.strip().upper(), "currentColor")


def _short(d: str) -> str:
    """A path in shorter form: M 11.0,81.8 L 15.6,89.0 becomes M11 81.8L15.6 89."""
    return re.sub(r"\s*([A-Z])\s*", r"\1", re.sub(r"\.0\b", "", d).replace(",", " ")).strip()
