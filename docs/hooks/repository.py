"""Makes files outside docs/ part of the site, so that a link in Markdown works here and on a code host.

A link names a file of the repository, relative to the file that it is in. If that file is on the site, the link goes
there. If not, such as a source file, it goes to the repository's page for it (``repo_url`` of mkdocs.yml), or is plain
text if there is none. A link to a file that does not exist stays as it is, and MkDocs reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = "docs/"
# The files outside docs/ that are on the site, at the same path. README.md is the front page of a code host; the site
# has docs/index.md for that.
OUTSIDE = ["[!R]*.md", "bench/**/*.md", "bench/results/**/*.png", "bench/results/**/*.svg", "csrc/*.md"]
# In this dialect of Markdown, <g_n, d> would be a tag of HTML, and disappear. On a code host only real tags are.
NO_TAG = r"<(?!/?[A-Za-z][A-Za-z0-9-]*[\s/>]|!--|https?:|mailto:)"


def resolve(link: str, page: str, on_site: set[str], repo_url: str | None) -> str | None:
    """Where a link of a page goes on the site; None: nowhere, so that it becomes text.

    Args:
        link: as it is written in the file
        page: the path of that file on the site, as MkDocs names it: relative to docs/, or to the root if outside
        on_site: these paths of all files of the site
        repo_url: the address of the repository, if it has one
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return link
    folder = posixpath.dirname(page if is_outside(page) else DOCS + page)
    target = posixpath.normpath(posixpath.join(folder, unquote(parts.path)))
    name = target.removeprefix(DOCS)
    name = name if name in on_site else f"{name}/README.md"  # a code host shows the README.md of a folder, too
    if name in on_site:
        return parts._replace(path=posixpath.relpath(name, posixpath.dirname(page) or ".")).geturl()
    if target.startswith(("../", DOCS)) or not (ROOT / target).exists():
        return link
    return f"{repo_url.rstrip('/')}/blob/main/{target}" if repo_url else None


def is_outside(page: str) -> bool:
    """Whether a file of the site is outside docs/."""
    return not (ROOT / DOCS / page).exists() and (ROOT / page).exists()


class Links(Treeprocessor):
    """Rewrites the links and pictures of one page."""

    page: str
    on_site: set[str]
    repo_url: str | None

    def run(self, root: Element) -> None:
        for element in root.iter():
            for attribute in ("href", "src"):
                link = element.get(attribute)
                if link is None:
                    continue
                new = resolve(link, self.page, self.on_site, self.repo_url)
                if new is None:
                    element.tag = "span"
                    del element.attrib[attribute]
                else:
                    element.set(attribute, new)


class Names(Treeprocessor):
    """Makes a link to the reference of each public name in code, such as `cats.CATS` or `cats.ops.gram()`."""

    def run(self, root: Element) -> None:
        for parent in list(root.iter()):
            if parent.tag in ("a", "autoref", "pre", "h1", "h2", "h3"):
                continue
            for i, child in enumerate(parent):
                if child.tag == "code" and (name := re.fullmatch(r"(cats(?:\.\w+)+)(?:\(\))?", child.text or "")):
                    # mkdocs-autorefs replaces this: by a link, or by the code alone if the name is not in the reference
                    parent[i] = Element("autoref", identifier=name[1], optional="")
                    parent[i].append(child)
                    parent[i].tail, child.tail = child.tail, None


class LessThan(InlineProcessor):
    """The sign < where it begins no tag."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return m[0], m.start(), m.end()


class Repository(Extension):
    """The Markdown extension, for pages and for docstrings. MkDocs says before each page which one it is."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Before MkDocs' own processor of links, which has priority 0.
        md.treeprocessors.register(Links(md), "repository", 1)
        md.treeprocessors.register(Names(md), "names", 1)
        # Between code, which has priority 190, and HTML, which has 90.
        md.inlinePatterns.register(LessThan(NO_TAG, md), "less_than", 150)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(Repository())  # type: ignore[arg-type]  # MkDocs passes them on to Markdown
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called before each page is converted."""
    Links.page = page.file.src_uri
    Links.on_site = set(files.src_uris)
    Links.repo_url = config.repo_url
    # A block marked "python no-run" is not run by tests/test_docs.py; Markdown knows only the language.
    return re.sub(r"^( *```\w+) no-run$", r"\1", markdown, flags=re.MULTILINE)
