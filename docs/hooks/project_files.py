"""Adds files of the project that pages link to, but that lie outside of docs/, as pages of the site.

Markdown files are shown as they are, other files as code, so that every link of the documentation works both in the
repository and in the site, without an address on the internet.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PLACE = "project"  # folder of the added pages in the site
_LINK = re.compile(r"(\]\()([^)\s]+)(\))|(\ssrc=\")([^\"]+)(\")")
_LANGUAGES = {".py": "python", ".yml": "yaml", ".toml": "toml", ".cff": "yaml"}
_IN_NAVIGATION = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_sources: dict[str, str] = {}  # page of the site -> path of its file in the project


def _target(page: str, link: str) -> str | None:
    """Return the path in the project of the file outside of docs/ that a link leads to, or None.

    Args:
        page: path of the linking file in the project.
        link: relative, without anchor.
    """
    if re.match(r"[a-z]+:|/|#", link) or not link:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith(("docs/", "../")) and (ROOT / path).is_file() else None


def _uri(path: str) -> str:
    """Return the path in the site of a file of the project."""
    is_page = path.endswith(".md") or not path.endswith((".png", ".svg", ".jpg"))
    return f"{PLACE}/{path}" + (".md" if is_page and not path.endswith(".md") else "")


def _links(path: str) -> list[str]:
    """List the files outside of docs/ that a Markdown file of the project links to."""
    text = (ROOT / path).read_text(encoding="utf-8")
    links = [(match[2] or match[5]).partition("#")[0] for match in _LINK.finditer(text)]
    return [target for link in links if (target := _target(path, link)) is not None]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are linked, directly or by added pages."""
    _sources.clear()
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None]
    missing = list(_IN_NAVIGATION)
    missing += [target for page in pages for target in _links(page)]
    while missing:
        path = missing.pop()
        uri = _uri(path)
        if uri in _sources:
            continue
        _sources[uri] = path
        if path.endswith(".md"):
            missing += _links(path)
            content: str | bytes = (ROOT / path).read_text(encoding="utf-8")
        elif uri == f"{PLACE}/{path}":
            content = (ROOT / path).read_bytes()
        else:
            code = (ROOT / path).read_text(encoding="utf-8")
            content = f"# {path}\n\n````{_LANGUAGES.get(Path(path).suffix, 'text')}\n{code.rstrip()}\n````\n"
        inclusion = InclusionLevel.UNDEFINED if path in _IN_NAVIGATION else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the project to the added pages."""
    place = page.file.src_uri
    if place in _sources and not _sources[place].endswith(".md"):
        return markdown  # code
    source = _sources.get(place, f"docs/{place}")

    def replace(match: re.Match[str]) -> str:
        before, link, after = (match[1], match[2], match[3]) if match[1] else (match[4], match[5], match[6])
        path, anchor_mark, anchor = link.partition("#")
        target = _target(source, path)
        if target is not None:
            uri = _uri(target)
        elif place in _sources and path and not re.match(r"[a-z]+:|/", path):  # of an added page, into docs/
            uri = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
            if not uri.startswith("docs/"):
                return match[0]
            uri = uri.removeprefix("docs/")
        else:
            return match[0]
        return f"{before}{posixpath.relpath(uri, posixpath.dirname(place) or '.')}{anchor_mark}{anchor}{after}"

    return _LINK.sub(replace, markdown)
