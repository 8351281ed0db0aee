"""Metadata of a release that depend on where it is built: addresses of the repository, in links and in the README.

GitHub's workflows know the repository that they run in. Elsewhere, a package has no addresses, and the links of its README
stay relative.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)(\[(?:[^\]\\]|\\.)*\])\((?!https?:|mailto:|#)([^)\s]+)\)")
_SOURCE = re.compile(r'\b(src|srcset|href)="(?!https?:|mailto:|#|data:)([^"]+)"')


class RepositoryMetadata(MetadataHookInterface):
    """Adds project URLs and a README whose links lead to the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in the fields that pyproject.toml calls dynamic."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        server, name, commit = (os.environ.get(f"GITHUB_{part}", "") for part in ("SERVER_URL", "REPOSITORY", "SHA"))
        address = f"{server}/{name}"
        if server and name and commit:
            text = absolute_links(text, address, commit)
            metadata["urls"] = {
                "Repository": address,
                "Documentation": f"{address}/tree/main/docs",
                "Changelog": f"{address}/blob/main/CHANGELOG.md",
                "Issues": f"{address}/issues",
                "Security": f"{address}/security/policy",
            }
        else:
            metadata["urls"] = {}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute_links(text: str, address: str, commit: str) -> str:
    """Replace relative links of a README by addresses of pages, and those of pictures by addresses of files."""
    text = _LINK.sub(
        lambda match: f"{match[1]}{match[2]}({address}/{'raw' if match[1] else 'blob'}/{commit}/{match[3]})", text
    )
    return _SOURCE.sub(
        lambda match: f'{match[1]}="{address}/{"blob" if match[1] == "href" else "raw"}/{commit}/{match[2]}"', text
    )
