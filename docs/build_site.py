"""How `make docs` makes the site: hooks of MkDocs, and an extension of Griffe for the reference.

The pages of docs/ are written for whoever reads them in the repository. Here the pages outside of
docs/ join them (README, SECURITY, CHANGELOG, the benchmarks, the examples, notebooks with what
they printed), and links among all of them are turned to where the pages are in the site.

The extension tells Griffe, which reads the source without importing it, what is only there when
the package is imported: the names that packages offer lazily, the signature and the help of
``AdversarialTrainer``, and the help of settings.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import html
import importlib
import inspect
import json
import os
import pathlib
import posixpath
import re

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cascade_keras.settings import Settings, choices_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<to>[^)\s]+)\)")
INLINE = re.compile(r"<code>([^<]*)</code>")
FLAG = re.compile(r"--\w+(?:=[\w.,]{1,12}(?![\w.,]))?")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)

# What a browser would fetch by itself; a link that is only followed when clicked is none of it.
_FOREIGN = r"""(?P<url>(?:https?:)?//[^\s"'>)]+)"""
FETCHED = {
    ".html": re.compile(
        r"""(?:\ssrc(?:set)?=|\bdata=|<link\b(?![^>]*rel="?canonical)[^>]*\shref=|url\()["']?"""
        + _FOREIGN
    ),
    ".css": re.compile(r"""(?:url\(|@import\s+)["']?""" + _FOREIGN),
}

# Pages from outside of docs/, by their place in the repository, and their place in the site.
OUTSIDE = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "license.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples/index.md",
    "docs/results": "results/README.md",  # GitHub shows a folder by its README, as MkDocs does
} | {
    f"examples/{path.name}": f"examples/{path.stem}.md"
    for pattern in ("*.py", "*.ipynb")
    for path in sorted((ROOT / "examples").glob(pattern))
}
OUTSIDE |= {
    str(card.relative_to(ROOT)): f"zoo/{card.parent.name}.md"
    for card in sorted((ROOT / "cascade_keras/zoo/presets").glob("*/README.md"))
}


# Pages.


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/, and the notebooks' pictures."""
    for place, page in OUTSIDE.items():
        if place.startswith("docs/"):
            continue
        path = ROOT / place
        pictures: dict[str, bytes] = {}
        if path.suffix == ".ipynb":
            content, pictures = of_notebook(path)
        elif path.suffix == ".py":
            content = of_program(path)
        elif path.suffix == ".md":
            content = path.read_text("utf-8")
        else:
            content = f"# {path.name}\n\n```text\n{path.read_text('utf-8').strip()}\n```\n"
        files.append(File.generated(config, page, content=content))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn a page's links to where their pages are in the site."""
    here = page.file.src_uri
    source = next((place for place, site in OUTSIDE.items() if site == here), f"docs/{here}")
    if source == "docs/results":
        source = f"docs/{here}"
    parts = FENCE.split(markdown)
    return "".join(
        part if part.startswith("```") else LINK.sub(lambda link: _turned(link, source, here), part)
        for part in parts
    )


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep a flag in one piece: a browser would end a line after its hyphens."""
    return INLINE.sub(lambda code: FLAG.sub(r'<span class="flag">\g<0></span>', code[0]), content)


def _turned(link: re.Match, source: str, here: str) -> str:
    """Return a link of a page that is at one place of the repository and another of the site."""
    to, _, anchor = link["to"].partition("#")
    if not to or "://" in to or to.startswith("mailto:"):
        return link[0]
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
    site = OUTSIDE.get(place)
    if site is None and place.startswith("docs/"):
        site = place.removeprefix("docs/")
    if site is None:
        if not (ROOT / place).exists():
            raise PluginError(f"{source} links to {to}, which does not exist")
        return f"{link['text']} (`{place}`)" if place not in link["text"] else link["text"]
    relative = posixpath.relpath(site, posixpath.dirname(here) or ".")
    return f"[{link['text']}]({relative}{'#' + anchor if anchor else ''})"


def of_program(path: pathlib.Path) -> str:
    """Return a page of an example: its docstring and its code."""
    code = path.read_text("utf-8")
    told = "\n".join(
        line if line.startswith("    ") else re.sub(r"([\[\]*])", r"\\\1", line)
        for line in (ast.get_docstring(ast.parse(code)) or "").splitlines()
    )
    first, _, rest = told.partition("\n")
    rest = rest.strip("\n").rstrip()  # what is indented at its beginning is code
    return f"# {path.name}\n\n{first}\n\n{rest}\n\n```python\n{code.strip()}\n```\n"


def of_notebook(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """Return a page of a notebook as it was run, and its pictures by their names."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![{name}]({name})")
            else:
                text = "".join(output.get("text") or data.get("text/plain", ""))
                parts.append(f'<pre class="output">{html.escape(text.rstrip())}</pre>')
    return "\n\n".join(parts) + "\n", pictures


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that would fetch anything from another host."""
    for path in pathlib.Path(config.site_dir).rglob("*"):
        pattern = FETCHED.get(path.suffix)
        found = pattern and pattern.search(path.read_text("utf-8"))
        if found:
            raise PluginError(f"{path} fetches {found['url']} from another host")


# The reference.


class Imported(griffe.Extension):
    """Fills in what is known of this package only when it is imported."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Look through the package's modules, once they are all read."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        self._visit(pkg)

    def _visit(self, module: griffe.Module) -> None:
        imported = importlib.import_module(module.path)
        homes = getattr(imported, "_HOMES", {})
        for name, home in homes.items():
            if home and name not in module.members:
                module.set_member(name, griffe.Alias(name, f"{module.path}.{home}.{name}"))
        if homes:
            module.exports = [name for name, home in homes.items() if home]
        functions = {}
        for name, member in module.members.items():
            if member.is_alias:
                continue
            if member.is_module and not name.startswith("_"):
                self._visit(member)
            elif member.is_class:
                self._tell(member, getattr(imported, name, None))
            elif member.is_attribute and inspect.isfunction(getattr(imported, name, None)):
                made = getattr(imported, name)  # by a function that makes functions
                functions[name] = _function(name, inspect.signature(made), made.__doc__)
            elif member.is_attribute and member.docstring is None:
                _told_by_comment(module, member)
        for name, function in functions.items():
            module.set_member(name, function)

    def _tell(self, cls: griffe.Class, imported: object) -> None:
        if not inspect.isclass(imported):
            return
        if cls.docstring and imported.__doc__ and imported.__doc__ != cls.docstring.value:
            cls.docstring.value = _listed(inspect.cleandoc(imported.__doc__))
        if "__signature__" in vars(imported) or issubclass(imported, Settings):
            init = _function("__init__", inspect.signature(imported), None)
            cls.set_member("__init__", init)
        if issubclass(imported, Settings):
            for field in dataclasses.fields(imported):
                # Also those of a base, which are settings of this program like its own.
                setting = griffe.Attribute(
                    field.name,
                    annotation=_text(field.type),
                    value=repr(field.default),
                    docstring=griffe.Docstring(_of_setting(field)),
                )
                at = getattr(cls.members.get(field.name), "lineno", None)
                setting.lineno = setting.endlineno = at
                cls.set_member(field.name, setting)


def _listed(told: str) -> str:
    """Return a docstring whose argument **options has options of its own, these as a list."""
    before, options, after = told.partition("    **options: ")
    after = re.sub(r"^ {8}(\w+): ", r"        - `\1`: ", after, flags=re.MULTILINE)
    return before + options + after.replace("\n        - ", "\n\n        - ", 1)


def _of_setting(field: dataclasses.Field) -> str:
    """Return the help of a setting, and what it may be."""
    told, rule, choices = field.metadata["help"], field.metadata["rule"], choices_of(field)
    text = told() if callable(told) else told
    text = f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."
    if choices is not None:
        text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    if rule is not None:
        text += f" It is {rule.expected}."
    return text


def _function(name: str, signature: inspect.Signature, told: str | None) -> griffe.Function:
    returns = signature.return_annotation
    return griffe.Function(
        name,
        parameters=_parameters(signature, method=name == "__init__"),
        returns=None if returns is signature.empty else _text(returns),
        docstring=griffe.Docstring(inspect.cleandoc(told)) if told else None,
    )


def _text(annotation) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _parameters(signature: inspect.Signature, method: bool) -> griffe.Parameters:
    own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Parameters(
        *([own] if method else ()),
        *(
            griffe.Parameter(
                parameter.name,
                annotation=None
                if parameter.annotation is parameter.empty
                else _text(parameter.annotation),
                kind=griffe.ParameterKind[parameter.kind.name.lower()],
                default=None if parameter.default is parameter.empty else repr(parameter.default),
            )
            for parameter in signature.parameters.values()
        ),
    )


def _told_by_comment(module: griffe.Module, attribute: griffe.Attribute) -> None:
    """Take the comment above a constant, or behind it, for its docstring."""
    lines, told = module.lines_collection[module.filepath], []
    behind = lines[attribute.endlineno - 1].partition("  # ")[2]
    if behind:
        told.append(behind)
    for line in reversed(lines[: attribute.lineno - 1]):
        if behind or not line.startswith("# "):
            break
        told.insert(0, line[2:])
    if told:
        attribute.docstring = griffe.Docstring("\n".join(told), parent=attribute)
