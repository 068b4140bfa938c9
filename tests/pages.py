"""Pages of reports, read as a browser reads them."""

import json
from html.parser import HTMLParser


class _Page(HTMLParser):
    """The elements of a page, and the text of its scripts by their id or type."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.styles = [], {}, []
        self.inside, self.in_style = None, False

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = dict(attributes).get("id", "code") if tag == "script" else None
        self.in_style = tag == "style"

    def handle_endtag(self, tag):
        self.inside, self.in_style = None, False

    def handle_data(self, data):
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data
        if self.in_style:
            self.styles.append(data)


def parse_page(text):
    """The tags of a page with their attributes, its scripts by id, and its styles."""
    page = _Page()
    page.feed(text)
    page.close()
    return page


def read_page(path):
    """The data of a page."""
    return json.loads(parse_page(path.read_text("utf-8")).scripts["data"])


def read_tables(path):
    """The tables of a page of one run, by title."""
    (run,) = read_page(path)["runs"]
    return run["tables"]
