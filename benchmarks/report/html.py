"""HTML pages: how their templates are loaded, and the style sheet that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def page_template(package: str, filters: Mapping[str, Callable[..., str]]) -> jinja2.Template:
    """The `page.html.j2` of a package. It may include "style.css.j2", and has the filter `plain` besides `filters`.

    Load it when the command starts: the file may be another one when a long run ends.
    """
    loaders = [jinja2.PackageLoader(name, ".") for name in (package, __package__)]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"plain": _plain, **filters}
    return environment.get_template("page.html.j2")


def _plain(value: Any) -> str:
    """A value of the environment, or of a run's settings, in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list | tuple):  # a list in a list is a frame size
        return ", ".join("x".join(map(str, each)) if isinstance(each, list | tuple) else _plain(each) for each in value)
    return "not known" if value is None else str(value)
