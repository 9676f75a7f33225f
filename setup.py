from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="nerve-fast",
    version="0.1.0",
    description="Fast, exact, any-size NERVE: training-free open-vocabulary segmentation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # The folder `kernels` must not become a top-level package, because transformers and diffusers
    # import Hugging Face's package of that name; it and `bench` are mapped.
    packages=[
        *find_packages(include=["nerve_fast*"]),
        "nerve_fast.bench",
        "nerve_fast.bench.cases",
        "nerve_fast.bench.harness",
        "nerve_fast.bench.pages",
        "nerve_fast.kernels",
    ],
    package_dir={"nerve_fast.bench": "bench", "nerve_fast.kernels": "kernels"},
    package_data={
        "nerve_fast.datasets": ["classes.json"],
        "nerve_fast.dispatch": ["rates.json"],
        "nerve_fast.evaluation": ["presets.json", "published.json"],
        "nerve_fast.tiny": ["models/*", "models/*/*", "models/*/*/*"],
    },
    install_requires=[
        "torch>=2.6",
        "diffusers>=0.35",
        "transformers>=5.0",
        "safetensors",
        "accelerate",
        "huggingface_hub",
        "numpy",
        "pillow>=10.1",
        "psutil",
        "tqdm",
    ],
    extras_require={
        "test": [
            "matplotlib",
            "pycocotools",
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "ruff",
            "scikit-image",
            "scikit-learn",
            "scipy",
            "torch_geometric",
            # torch for a GPU brings the Triton it was built with; one for the CPU has none, and
            # the kernels are interpreted and compiled for testing.
            "triton>=3.6; platform_system == 'Linux'",
        ],
        # COCO's instance annotations, of which `nerve-fast data coco-object` makes label maps.
        "data": ["pycocotools"],
        # The suite, its report, and those of its opponents that PyTorch does not bring.
        "bench": [
            "matplotlib",
            "pytest-benchmark",
            "scikit-image",
            "scipy",
            "torch_geometric",
        ],
    },
    entry_points={"console_scripts": ["nerve-fast = nerve_fast.cli.main:main"]},
)
