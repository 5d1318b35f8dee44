"README.md is made from nbs/index.ipynb: `python tests/malles_readme.py` writes it and its pictures, a test compares them."
import posixpath, re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURES = "nbs/pictures"  # what the cells of the index draw, for the README to show


def from_root(text):
    "Links of nbs/index.ipynb as seen from the top of the project."
    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", lambda m: f"]({posixpath.normpath(posixpath.join('nbs', m[1]))})", text)


def readme():
    "The text, and name -> svg of its pictures."
    import nbformat
    from nbconvert import MarkdownExporter
    notebook = nbformat.read(ROOT/"nbs/index.ipynb", as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # or the code fences lose their language
    cells, pictures = [], {}
    for cell in notebook.cells:
        if cell.source.startswith("#| hide"): continue
        cells.append(cell)
        if cell.cell_type == "markdown": cell.source = from_root(cell.source)
        else:
            drawn = [o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {})]
            cell.outputs = []
            for svg in drawn:
                name = f"{PICTURES}/index_{len(pictures) + 1}.svg"
                pictures[name] = svg.strip() + "\n"
                cells.append(nbformat.v4.new_markdown_cell(f"![what the cell above draws]({name})"))
    notebook.cells = cells
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", pictures


if __name__ == "__main__":
    text, pictures = readme()
    for old in (ROOT/PICTURES).glob("index_*.svg"):
        if f"{PICTURES}/{old.name}" not in pictures: old.unlink()
    for name, held in {"README.md": text, **pictures}.items():
        path = ROOT/name
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(path.name + ".tmp")
        part.write_text(held, encoding="utf-8")
        part.replace(path)
