"The README is the index notebook, its links lead somewhere, and its map of the notebooks is complete."
import re
from pathlib import Path

from malles_readme import ROOT, readme


def test_readme_and_pictures_are_the_index():
    text, pictures = readme()
    for name, held in {"README.md": text, **pictures}.items():
        assert (ROOT/name).read_text(encoding="utf-8") == held, f"{name} differs from nbs/index.ipynb: run python tests/malles_readme.py"
        assert "<script" not in held and not re.search(r'(href|src)="https?://', held), f"{name} needs a network"


def test_links_lead_somewhere():
    broken = [link for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", (ROOT/"README.md").read_text(encoding="utf-8")) if not (ROOT/link).exists()]
    assert not broken, f"README.md links to {broken}"


def test_map_names_every_notebook():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    missing = [str(p.relative_to(ROOT)) for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts and p.name != "index.ipynb" and f"({p.relative_to(ROOT)})" not in text]
    assert not missing, f"the map in nbs/index.ipynb lacks {missing}"


def test_commands_exist():
    "Every option and command that the README shows is one that the command line has, every make target is in the Makefile."
    from malles.cli import parser
    text, makefile = (ROOT/"README.md").read_text(encoding="utf-8"), (ROOT/"Makefile").read_text(encoding="utf-8")
    helped = {name: p.format_help() for name, p in parser()._subparsers._group_actions[0].choices.items()}
    for command, rest in re.findall(r"malles (run|bench|simulate|check)\b([^`\n#]*)", text):
        for option in re.findall(r"--[a-z]+", rest): assert option in helped[command], f"malles {command} has no {option}"
    for target in set(re.findall(r"\bmake (run|test|lab|[a-z]+)\b(?=[ `\n])", "\n".join(re.findall(r"`[^`\n]+`|```sh.*?```", text, flags=re.S)))):
        assert re.search(rf"^{target}:", makefile, flags=re.M), f"the Makefile has no {target}"
