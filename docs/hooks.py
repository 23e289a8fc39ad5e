"""For mkdocs: pages that stay outside docs/, and links that work in the repository as well as in the site.

Pages link to files by their path in the repository. In the site, such a link leads to the page that the file became,
or to a copy of the file below files/.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

# file of the repository -> page of the site
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "calibration/sensitivity.md": "sensitivity.md",
    "enet_deploy/weights/README.md": "model-card.md",
    "examples/c_abi.md": "c-abi.md",
    "examples/ros2_node/README.md": "ros2-node.md",
}
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")  # not of other sites, nor of anchors alone


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = Path(page.file.abs_src_path or config.docs_dir).resolve().parent

    def in_site(link: re.Match[str]) -> str:
        before, path, after = link.groups()
        target = (folder / path).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return link[0]  # mkdocs warns of it
        source = target.relative_to(ROOT).as_posix()
        uri = PAGES.get(source) or source.removeprefix("docs/")
        if uri == source:
            uri = f"files/{source}"
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
        return before + os.path.relpath(uri, os.path.dirname(page.file.src_uri) or ".") + after  # noqa: PTH120

    return LINK.sub(in_site, markdown)
