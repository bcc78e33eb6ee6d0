"""Says which links of a site lead nowhere: the last part of `make docs`.

    python docs/check_links.py site

MkDocs looks at the links among Markdown pages. These are those of the pages as they are read, with
what the theme, the reference and raw HTML add, down to the anchors. Links to other hosts are left
alone: whether they are there is for their owners to say.
"""

from __future__ import annotations

import html.parser
import pathlib
import sys
import urllib.parse


def broken_links(site: pathlib.Path) -> list[str]:
    """Return the links within a site to files or anchors that are not there, each with its page."""
    site = site.resolve()
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    # 404.html is shown at any address, so its links begin at the server's root.
    return [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        for link in sorted(page.links)
        if path.name != "404.html" and not _leads_somewhere(link, path, pages)
    ]


def _leads_somewhere(link: str, path: pathlib.Path, pages: dict[pathlib.Path, Page]) -> bool:
    parts = urllib.parse.urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    to = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
    if to.is_dir():
        to /= "index.html"
    anchor = urllib.parse.unquote(parts.fragment)
    return to.is_file() and (not anchor or to not in pages or anchor in pages[to].anchors)


class Page(html.parser.HTMLParser):
    """What a page links to or loads, and which of its places can be linked to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down a tag's link and its name."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.add(value)
            elif value and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


if __name__ == "__main__":
    broken = broken_links(pathlib.Path(sys.argv[1]))
    print("\n".join(broken) or "every link leads somewhere")
    sys.exit(1 if broken else 0)
