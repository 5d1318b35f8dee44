"Builds the package that settings.ini describes."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="], interpolation=None)
settings.read(root/"settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
lines = lambda key: [line.strip() for line in cfg.get(key, "").splitlines() if line.strip()]
version = re.search(r'__version__ = "(.+?)"', (root/"malles/__init__.py").read_text(encoding="utf-8"))[1]
readme = root/"README.md"
samples = [str(p.relative_to(root)) for p in sorted((root/"data_samples").rglob("*")) if p.is_file()]
folders = sorted({str(Path(p).parent) for p in samples})

setup(
    name=cfg["lib_name"], version=version, description=cfg["description"], author=cfg["author"], license=cfg["license"],
    keywords=[k.strip() for k in cfg["keywords"].split(",")],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "", long_description_content_type="text/markdown",
    python_requires=f">={cfg['min_python']}", install_requires=lines("requirements"),
    extras_require={"dev": lines("dev_requirements"), "negotiation": lines("negotiation_requirements"), "ray": lines("ray_requirements")},
    packages=find_packages(include=["malles", "malles.*"]),
    package_data={"malles": ["weights/**/*"]}, include_package_data=False,
    data_files=[(f"share/malles/{folder}", [p for p in samples if str(Path(p).parent) == folder]) for folder in folders],
    entry_points={"console_scripts": ["malles = malles.cli:main"], "nbdev": ["malles=malles._modidx:d"]},
    classifiers=["Programming Language :: Python :: 3", "Intended Audience :: Science/Research"],
)
