"""Packaging: the trainer `pkd` and the kernels `pkd_kernels` (folder kernels/)."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="pkdgan",
    version="0.1.0",
    description="Progressive knowledge distillation with GANs for one-class novelty detection, "
    "with fused Triton kernels for batch-1 training",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["pkd*"]), *find_packages("kernels")],
    package_dir={"pkd": "pkd", "pkd_kernels": "kernels/pkd_kernels"},
    package_data={"pkd.report": ["report.html"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "numpy>=1.26",
        "scikit-learn>=1.6",
        "pillow>=10",
        "safetensors>=0.4.3",
        "jsonargparse[signatures]>=4.35",
        "rich>=13",
        "pooch>=1.8",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "filelock>=3.12",
        "pyyaml>=6",
        "docstring-parser>=0.15",
    ],
    extras_require={
        "export": ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "tensorboard": ["tensorboard>=2.16"],
        "test": [
            *("pytest>=8", "pytest-benchmark>=5", "hypothesis>=6", "ruff>=0.9"),
            "tensorboard>=2.16",
        ],
    },
    entry_points={"console_scripts": ["pkd = pkd.__main__:main"]},
)
