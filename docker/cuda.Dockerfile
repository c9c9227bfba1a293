# kasatune for NVIDIA GPUs, at the versions of requirements.lock. The host needs a driver for CUDA 13 and the NVIDIA
# Container Toolkit. From the root of a clone:
#
#   docker build -f docker/cuda.Dockerfile -t kasatune:cuda .
#   docker run --rm --gpus all --ipc host -v "$PWD:/workspace" --user "$(id -u):$(id -g)" kasatune:cuda train recipe.yaml
#   docker run --rm --gpus all --ipc host -v "$PWD:/workspace" --user "$(id -u):$(id -g)" --entrypoint torchrun \
#     kasatune:cuda --nproc-per-node 2 -m kasatune train recipe.yaml
FROM python:3.11-slim-trixie

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp/home HF_HOME=/workspace/.cache/huggingface

WORKDIR /opt/kasatune
# The wheel of torch brings CUDA's libraries, so that the image needs no CUDA of its own; Triton compiles with gcc.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY docker/torch-cuda.txt docker/
RUN pip install -r docker/torch-cuda.txt
COPY requirements.lock .
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation . && pip check && kasatune --version

WORKDIR /workspace
ENTRYPOINT ["kasatune"]
CMD ["--help"]
