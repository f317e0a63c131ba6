"""What MkDocs does not do by itself for the site of docs/: mkdocs.yml names this file.

Pages outside docs/ join the site, and a link from a page to any other file of the repository leads
to a copy of it. So one Markdown serves a reader of the checkout and a reader of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""The pages outside docs/, by their path in the repository: where the site has them."""
SOURCES = {at: path for path, at in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/ and, where it was fetched, Mermaid."""
    for path, at in OUTSIDE.items():
        files.append(File.generated(config, at, content=(ROOT / path).read_text()))
    if mermaid := os.environ.get("WEIR_MERMAID"):
        files.append(File.generated(config, "assets/mermaid.js", abs_src_path=mermaid))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between places in the site."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        if "://" in match[1]:
            return match[1]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return posixpath.relpath(_place(path, config, files), posixpath.dirname(here) or ".")

    pieces = CODE.split(markdown)
    pieces[::2] = [LINK.sub(link, piece) for piece in pieces[::2]]
    return "".join(pieces)


def _place(path: str, config: MkDocsConfig, files: Files) -> str:
    """Return where the site has a file of the repository; copy it there if it is none of docs/."""
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    at = f"repository/{path}.txt"  # a browser shows text, and would save YAML
    if files.get_file_from_path(at) is None and (ROOT / path).is_file():
        files.append(File.generated(config, at, content=(ROOT / path).read_text()))
    return at
