"README.md is made from nbs/index.ipynb: `python tests/malles_readme.py` writes it, the test compares it."
from pathlib import Path

ROOT = Path(__file__).parent.parent


def readme():
    import nbformat
    from nbconvert import MarkdownExporter
    notebook = nbformat.read(ROOT/"nbs/index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # or the code fences lose their language
    notebook.cells = [c for c in notebook.cells if not c.source.startswith("#| hide")]
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.outputs = []  # pictures stay in the notebook
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return text.strip() + "\n"


if __name__ == "__main__":
    part = ROOT/"README.md.tmp"
    part.write_text(readme(), encoding="utf-8")
    part.replace(ROOT/"README.md")
