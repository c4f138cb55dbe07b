"""Package metadata, all of it read from settings.ini."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


class WithResults(build_py):
    "An installed library brings the records of the project's runs along, for its tables."

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                "results",
                Path(self.build_lib, cfg["lib_name"], "results"),
                ignore=shutil.ignore_patterns("*.safetensors"),
                dirs_exist_ok=True,
            )


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license={"apache2": "Apache-2.0"}[cfg["license"]],
    keywords=cfg["keywords"].split(),
    packages=find_packages(include=["maevit_course*"]),
    package_data={cfg["lib_name"]: ["bundled/*.safetensors", "bundled/*.md", "py.typed"]},
    cmdclass={"build_py": WithResults},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "export": cfg["export_requirements"].split(),
        "site": cfg["site_requirements"].split(),
    },
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
