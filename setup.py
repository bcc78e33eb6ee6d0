"""Packaging; build, lint and test settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="cascade_keras",
    version="0.6.0",
    description="Cascade adversarial training regularised with a unified embedding, for Keras 3",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["cascade_keras", "cascade_keras.*"]),
    package_data={"cascade_keras": ["py.typed", "zoo/presets/*/*"]},
    python_requires=">=3.11",
    install_requires=[
        "tensorflow>=2.18,<2.22",
        # With these the suite was run: keras_private.py reaches for names that are not public. In
        # 3.10 and 3.12 a step counts a network's regularisers several times, and no version before
        # 3.15 loads its files.
        "keras>=3.15,<3.16",
        "tensorflow-datasets>=4.9.7",
        # tensorflow-datasets 4.9 imports it when preparing a dataset but does not require it.
        "importlib_resources",
        # The protocol of the warm-up requests that a saved network carries for TF Serving.
        "tensorflow-serving-api>=2.18,<2.22",
        # tf.summary is empty without it since TensorFlow 2.21.
        "tensorboard>=2.18,<2.22",
        "numpy>=1.26",
        "absl-py>=2.0",
        # Reads every JSON file of the package by its description; pydantic would make each program
        # start a tenth of a second later.
        "msgspec>=0.19,<1",
        "rich>=13",
        "scikit-learn>=1.3",
        "matplotlib>=3.8",
        # matplotlib needs it too: the panels and thumbnails in TensorBoard.
        "pillow>=10",
    ],
    extras_require={
        # foolbox and the Adversarial Robustness Toolbox are the independent implementations that
        # the attacks are compared with.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            # A second runtime that loads the saved networks.
            "openvino>=2025",
            "foolbox>=3.3.4,<4",
            "adversarial-robustness-toolbox>=1.20,<2",
        ],
        # Each minor version of mypy finds other things.
        "lint": ["ruff>=0.15", "mypy>=1.20,<1.21", "pre-commit>=4"],
        # Makes the pages of docs/ and the reference into a site: `make docs`.
        "docs": [
            "mkdocs>=1.6.1,<2",
            "mkdocs-material>=9.8,<10",
            "mkdocstrings>=1.0,<2",
            "mkdocstrings-python>=2.0,<3",
            "griffelib>=2.4,<3",
        ],
        # Several machines or a cluster: workflow/Snakefile runs the plan of bin/reproduce.
        "reproduce": ["snakemake>=9,<10"],
        "benchmark": [
            "torch>=2.2",
            "foolbox>=3.3.4,<4",
            "adversarial-robustness-toolbox>=1.20,<2",
        ],
    },
    entry_points={
        "console_scripts": [
            "cascade-train=cascade_keras.cli.launch:train",
            "cascade-export=cascade_keras.cli.launch:export",
            "cascade-craft=cascade_keras.cli.launch:craft",
            "cascade-evaluate=cascade_keras.cli.launch:evaluate",
            "cascade-analyze=cascade_keras.cli.launch:analyze",
            "cascade-zoo=cascade_keras.cli.launch:zoo",
            "cascade-reproduce=cascade_keras.cli.launch:reproduce",
            "cascade-prepare-data=cascade_keras.cli.launch:prepare_data",
        ]
    },
)
