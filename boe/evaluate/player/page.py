"""The page: one HTML file with everything in it, which asks nothing of any network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from boe.evaluate.player.scene import Scene
from boe.files import write_whole

# Nothing may be fetched or sent; only what stands in the file runs.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_page(scenes: Sequence[Scene]) -> str:
    """The page of some scenes.

    Whatever a scene holds is data: it stands in the page as JSON with all of HTML's
    characters escaped, and the script writes it as text.

    Raises:
        ValueError: no scene.
    """
    if not scenes:
        raise ValueError("scenes must hold at least one, got none")
    data = embeddable_json([scene.as_json() for scene in scenes])
    parts = files(__package__)
    template = parts.joinpath("page.html").read_text(encoding="utf-8")
    slots = {
        "{{policy}}": html.escape(_POLICY),
        "{{title}}": html.escape(scenes[0].title),
        "{{style}}": parts.joinpath("style.css").read_text(encoding="utf-8"),
        "{{script}}": parts.joinpath("script.js").read_text(encoding="utf-8"),
        "{{data}}": data,
    }
    page = ""
    while template:
        # In one pass: what is filled in is not searched for slots again.
        place, slot = min((template.find(slot) % (len(template) + 1), slot) for slot in slots)
        if place == len(template):
            break
        page += template[:place] + slots[slot]
        template = template[place + len(slot) :]
    return page + template


def write_page(scenes: Sequence[Scene], path: Path) -> None:
    """Write the page whole or not at all."""
    write_whole(path, render_page(scenes))


def embeddable_json(content: object) -> str:
    """JSON that can stand in a script element: no character that HTML could take for a tag."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
