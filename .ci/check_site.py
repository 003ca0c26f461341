"""Checks a built site without a network: `python .ci/check_site.py FOLDER`.

Every link inside the site leads to a page and a place that exist, and no page loads a script, a
style, a font or an image from elsewhere. No docstring of the reference was read as a type.
"""

import html.parser
import pathlib
import sys
import urllib.parse

LOADS = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}


class Page(html.parser.HTMLParser):
    """What a page links, what it loads, and the places that can be linked."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Collects the attributes that link, load or name a place."""
        attributes = dict(attrs)
        self.places |= {attributes.get("id"), attributes.get("name")}
        for name in ("href", "src"):
            url = attributes.get(name)
            is_metadata = attributes.get("rel") in ("canonical", "search")
            if url and (tag, name) in LOADS and not is_metadata:
                self.loads.append(url)
            elif url and not is_metadata:
                self.links.append(url)


def problems(folder):
    """A line for each bad link, each thing loaded from elsewhere, and each wrong type."""
    paths = [p for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts]  # templates
    pages = {path: Page(path) for path in paths}
    if not pages:
        yield f"{folder} has no pages"
    for path, page in pages.items():
        name = path.relative_to(folder)
        if name.parts[0] == "reference" and ">Type<" in path.read_text(encoding="utf-8"):
            yield f"{name} shows the first words of a docstring as a type"
        for url in page.loads:
            if urllib.parse.urlsplit(url).netloc:
                yield f"{name} loads {url}"
        for url in page.links + page.loads:
            parts = urllib.parse.urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            linked = urllib.parse.unquote(parts.path)
            target = (path.parent / linked).resolve() if linked else path
            place = urllib.parse.unquote(parts.fragment)
            if not target.exists():
                yield f"{name} links {url}, which does not exist"
            elif place and target in pages and place not in pages[target].places:
                yield f"{name} links {url}, but there is no such place"


if __name__ == "__main__":
    all_problems = sorted(set(problems(pathlib.Path(sys.argv[1]).resolve())))
    sys.exit("\n".join(all_problems) or None)
