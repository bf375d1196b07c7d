"""Hooks of mkdocs: pages that are generated, formulas, and a check that nothing is loaded."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor, ExecutePreprocessor

from docs import parameters

ROOT = Path(__file__).parents[1]
SECONDS = 120  # a cell of a notebook takes at most
FORMULAS = "method.md"
LOADED = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
FETCHED = re.compile(r"@import|url\([\"']?(?:https?:)?//")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files: parameters, the root's documents, notebooks."""
    pages: dict[str, str | bytes] = {
        "parameters.md": parameters.page((ROOT / "params.yaml").read_text(encoding="utf-8"))
    }
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    for path in sorted((ROOT / "docs/tutorials").glob("*.ipynb")):
        pages |= tutorial(path, path.stat().st_mtime_ns)
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


@lru_cache
def tutorial(path: Path, _changed: int) -> dict[str, str | bytes]:
    """Execute a notebook and give its page and pictures, by their places in the site.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    if os.environ.get("EIGENSEG_NOTEBOOKS") != "unexecuted":  # for those who write other pages
        ExecutePreprocessor(timeout=SECONDS).preprocess(notebook, {"metadata": {"path": str(ROOT)}})
    for cell in notebook.cells:  # progress and warnings go to stderr
        shown = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
        cell.update({"outputs": shown} if cell.cell_type == "code" else {})
    notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
    resources = {"output_files_dir": f"{path.stem}_files"}
    text, found = MarkdownExporter().from_notebook_node(notebook, resources)
    pictures = {f"tutorials/{name}": content for name, content in found["outputs"].items()}
    return {f"tutorials/{path.stem}.md": text, **pictures}


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""
    if page.file.src_uri != FORMULAS:
        return markdown
    text = re.sub(r"^\$\$(.+)\$\$$", lambda m: convert(m[1], display="block"), markdown, flags=re.M)
    return re.sub(r"(?<!\$)\$([^$\n]+)\$(?!\$)", lambda m: convert(m[1]), text)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page that loads anything from another host.

    Raises:
        PluginError: it names the page and what it loads.
    """
    if found := LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} must load nothing from outside, found {found[0]}")
    return output


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse style sheets that load anything from another host.

    Raises:
        PluginError: it names the file.
    """
    for path in Path(config.site_dir).rglob("*.css"):
        if found := FETCHED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path} must load nothing from outside, found {found[0]}")
