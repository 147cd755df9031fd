"""Texts in, texts out: prompts, chats and gaps, filled in by a masked language model."""

from boe.text.generator import TextGenerator
from boe.text.options import TextOptions
from boe.text.replies import Draft, Failure, Reply

__all__ = ["Draft", "Failure", "Reply", "TextGenerator", "TextOptions"]
