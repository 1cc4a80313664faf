"""The documentation site: ``make docs``. Nothing is fetched, and a warning is an error."""

import re
from pathlib import Path

import bmft

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]

project, author, release = "bmft", "the authors of bmft", bmft.__version__
html_title = f"bmft {release}"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "notebooks", "**/GALLERY_HEADER.rst", "sg_execution_times.rst"]
html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
smartquotes_action = "qe"  # "--" is an option, no dash
html_show_sphinx = html_show_copyright = False
# A real report, written by the notebook on debiasing, lies beside the pages.
html_extra_path = ["_build/extra"]

# A name in single backticks links to where it is documented, and is code where it is not.
default_role = "py:obj"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format, autodoc_preserve_defaults = "short", True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_use_rtype, napoleon_use_ivar = False, True

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. |\$ ", True

sphinx_gallery_conf = {
    "examples_dirs": "notebooks",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    # What they show is what the code does now, not what it did when they were last changed.
    "run_stale_examples": True,
    "capture_repr": ("_repr_html_", "__repr__"),
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "write_computation_times": False,
}


# Pages of the repository that are pages of the site, too.
PAGES = {
    "RESULTS": "benchmarks/RESULTS.md",
    "MASK_STUDY": "benchmarks/MASK_STUDY.md",
    "gate": "benchmarks/results/gate.md",
    "DESIGN": "DESIGN.md",
    "CONTRIBUTING": "CONTRIBUTING.md",
    "CHANGELOG": "CHANGELOG.md",
}
(HERE / "project").mkdir(exist_ok=True)
for _name, _path in PAGES.items():
    _text = (ROOT / _path).read_text(encoding="utf-8").replace("](docs/", "](../")
    # Where they lie in folders of their own they are side by side here.
    (HERE / "project" / f"{_name}.md").write_text(re.sub(r"\]\((benchmarks|results)/", "](", _text), encoding="utf-8")
(HERE / "_build" / "extra").mkdir(parents=True, exist_ok=True)


def link_to_copies(app, name, source):
    """A link that leaves docs/ for a page of the repository leads to its copy."""
    source[0] = re.sub(rf"\]\(\.\./(?:benchmarks/)?({'|'.join(PAGES)})\.md", r"](project/\1.md", source[0])


def short_defaults(app, what, name, obj, options, signature, returns):
    """A default that is made anew each time has no value to show, and no syntax either."""
    return signature and signature.replace("<factory>", "..."), returns


def without_empty_defaults(app, ctx, lines):
    """Leave out that an option has no default, which sphinx-click writes as click's own mark for that."""
    for place in reversed(range(len(lines))):
        if lines[place].strip() == ":default: ``Sentinel.UNSET``":
            del lines[place : place + 2]


def setup(app):
    app.connect("sphinx-click-process-options", without_empty_defaults)
    app.connect("autodoc-process-signature", short_defaults)
    app.connect("source-read", link_to_copies)
