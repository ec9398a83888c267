"""What the site does to pages: takes parts of the README in, and keeps links within the site."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# <!-- README.md: first words ... words after the last -->
_INCLUDED = re.compile(r"<!-- (\S+\.md): (.+?) \.\.\. (.+?) -->")
_LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs with each page; a file that is no page of the site is named without a link."""
    return _LINK.sub(_within, _INCLUDED.sub(_part, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs with each page in HTML; roles such as ``:class:`` are Sphinx's."""
    return re.sub(r":(?:class|data|func|meth):", "", html)


def _part(found: re.Match[str]) -> str:
    text = (ROOT / found[1]).read_text(encoding="utf-8")
    start = text.index(found[2])
    return text[start : text.index(found[3], start)]


def _within(found: re.Match[str]) -> str:
    """Links of a page lead from ``docs``, those of an included part of the README from the root."""
    text, anchor, docs = found[1], found[3] or "", ROOT / "docs"
    targets = [path for base in (docs, ROOT) if (path := (base / found[2]).resolve()).exists()]
    if not targets:
        raise FileNotFoundError(f"a link to {found[2]}, which is not there")
    if targets[0].is_file() and targets[0].is_relative_to(docs) and targets[0].suffix not in {".json", ".py"}:
        return f"{text}({targets[0].relative_to(docs).as_posix()}{anchor})"
    return text.strip("![]")
