"""Trajectories to step through: what each step saw, chose and wrote."""

from boe.evaluate.player.page import render_page
from boe.evaluate.player.scene import Film, Scene, film_item, film_text

__all__ = ["Film", "Scene", "film_item", "film_text", "render_page"]
