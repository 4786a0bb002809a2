"""Settings of Sphinx for `make docs`, where warnings are errors."""
import html
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sigplug import __version__  # noqa: E402

project = 'sigplug'
copyright = 'The sigplug authors'
release = version = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]
exclude_patterns = ['_build']

myst_enable_extensions = ['colon_fence', 'dollarmath']
# Links between the pages name headings as GitHub does.
myst_heading_anchors = 4

# The signatures have the types already.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
autodoc_default_options = {
    'members': True,
    'exclude-members': 'extra_repr',
    'show-inheritance': True,
}
autosummary_generate = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = 'hide'
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# A block is plain unless it names its language: most are output.
highlight_language = 'none'
# What is typed can be copied, but not what is printed.
copybutton_selector = ', '.join(
    f'div.highlight-{name} pre' for name in ('bash', 'python'))

html_math_renderer = 'mathml'
html_theme = 'furo'
html_title = f'sigplug {release}'
html_copy_source = False
html_static_path = ['_static']
html_css_files = ['site.css']


def link_registered_name(app, env, node, contnode):
    """Link ``sigplug.CenterHead``, the name in configs, to its class."""
    name = node.get('reftarget', '').rpartition('.')[2]
    for full, entry in env.domaindata['py']['objects'].items():
        if full.rpartition('.')[2] == name and full.startswith('sigplug.'):
            return nodes.reference(
                '', '', contnode, internal=True,
                refuri=app.builder.get_relative_uri(
                    node['refdoc'], entry.docname) + '#' + entry.node_id)
    return None


def enlarge_pictures(app, doctree):
    """Link each picture to its file, where it has its own size."""
    for image in doctree.findall(nodes.image):
        if not isinstance(image.parent, nodes.reference):
            image.setdefault('width', '100%')


def break_paths(app, doctree):
    """Let paths in tables break behind their separators, and only there."""
    for table in doctree.findall(nodes.table):
        for literal in list(table.findall(nodes.literal)):
            text = literal.astext()
            marks = '/_.,=' if len(text) > 16 else '/'
            first, *others = re.split(rf'(?<=[{marks}])(?=\w)', text)
            literal.children = [nodes.Text(first)]
            for part in others:
                literal += [nodes.raw('', '<wbr>', format='html'),
                            nodes.Text(part)]


def fold_tables(app, doctree):
    """Fold the tables of single cases, of which some pages have many."""
    if not app.env.docname.startswith('performance'):
        return
    for section in list(doctree.findall(nodes.section)):
        if (isinstance(section.parent.parent, nodes.section)
                and any(section.findall(nodes.table))):
            title = html.escape(section.pop(0).astext())
            section.insert(0, nodes.raw(
                '', f'<details><summary>{title}</summary>', format='html'))
            section += nodes.raw('', '</details>', format='html')


def write_formula(translator, node):
    """Write MathML, which browsers draw themselves: no script, no network."""
    block = isinstance(node, nodes.math_block)
    tex = node.astext()
    # Parentheses as tall as what is in them, by the name that docutils knows.
    tex = tex.replace(r'\Big(', r'\left(').replace(r'\Big)', r'\right)')
    mathml = tex2mathml(tex, as_block=block)
    # Braces as small as they are written.
    mathml = re.sub('<mo>([{}])</mo>', r'<mo stretchy="false">\1</mo>', mathml)
    # Names of functions stand close to their argument.
    mathml = re.sub('<mo>(min|max|exp|log|ln)</mo>', r'<mi>\1</mi>', mathml)
    translator.body.append(mathml)
    raise nodes.SkipNode


def setup(app):
    """Register the extensions; Sphinx calls this."""
    app.add_html_math_renderer(
        'mathml', (write_formula, None), (write_formula, None))
    app.connect('doctree-read', enlarge_pictures)
    app.connect('doctree-read', break_paths)
    # After the contents of the pages were collected, with the titles.
    app.connect('doctree-read', fold_tables, priority=900)
    app.connect('missing-reference', link_registered_name)
