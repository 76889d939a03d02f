"""Texts that try to act on whoever shows them, and a page in a browser."""

from dataclasses import dataclass, field
from typing import Any

SECRET = "Step one: take the key under the mat"
SAFE_SECRET = "Bread needs flour, water, salt and time"
MARK = "window.hacked = 1"
HOSTILE = (
    f"<script>{MARK}</script> & \"quoted\"",
    f"<img src=x onerror='{MARK}'><svg onload='{MARK}'>",
    f"</script><script>{MARK}</script><!-- ",
    "{{ 7 * 191 }} {% raw %} ${1337} %{x} #{1337}",
    "abc\u202egnp.exe\u2066 \u200f",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred\x9b0m",
    "=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1",
    "<a href='javascript:window.hacked=1'>x</a>",
    "\\input{/etc/passwd} $\\alpha$ % # & _ ^ ~ { }",
)  # fmt: skip


@dataclass
class Seen:
    """A page in a browser, what its console said, and what it asked for."""

    page: Any
    address: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def drawn(self) -> None:
        """Wait until every figure is drawn."""
        self.page.wait_for_selector("html[data-drawn='yes']", state="attached", timeout=60_000)

    def unfold(self) -> None:
        """Open every fold, and wait for what they draw."""
        self.page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
        self.page.wait_for_timeout(500)
        self.drawn()
