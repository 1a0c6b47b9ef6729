"""Check the built site: every link within it leads to an existing page and anchor, and no page loads anything from
elsewhere, so the site works offline.

``python docs/check_links.py docs/_build/html`` prints the broken links and exits with status 1 if there are any.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SKIPPED = ("_static", "_modules")
"""The theme's templates and the source listings. A listing links back to only one name of each module."""


class Page(HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name == "id" or (name, tag) == ("name", "a")):
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.add(value)
                if name == "src" or tag == "link":
                    self.loaded.add(value)


def broken(site: Path) -> list[str]:
    """The links of all pages that lead nowhere, and whatever pages load from elsewhere, as lines to print."""
    site = site.resolve()
    pages = {path: Page(path) for path in site.rglob("*.html") if path.relative_to(site).parts[0] not in SKIPPED}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if parts.netloc and link in page.loaded:
                    found.append(f"{path.relative_to(site)}: {link}: is loaded from elsewhere")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{path.relative_to(site)}: {link}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{path.relative_to(site)}: {link}: no such anchor")
    return sorted(found)


if __name__ == "__main__":
    lines = broken(Path(sys.argv[1]))
    print("\n".join(lines) or "every link within the site leads somewhere")
    sys.exit(bool(lines))
