"""A hook of mkdocs: what a page links to outside of this folder is named, not linked."""

import posixpath
import re

LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")


def on_page_markdown(markdown, page, **_):
    def named(match):
        folder = posixpath.dirname(page.file.src_uri)
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        return f"{match[1]} (`{target.lstrip('./')}`)" if target.startswith("..") else match[0]

    return LINK.sub(named, markdown)
