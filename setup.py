"""Where the packages lie. Everything else about the distribution is in pyproject.toml."""

from setuptools import find_packages, setup

# kernels/ is installed inside cats: the top-level name `kernels` belongs to another, widely used package.
setup(
    packages=[*find_packages(include=["cats", "cats.*"]), "cats.kernels"],
    package_dir={"cats": "cats", "cats.kernels": "kernels"},
    package_data={"cats": ["py.typed"]},
)
