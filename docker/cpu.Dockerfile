# kasatune for the CPU, at the versions of requirements.lock. From the root of a clone:
#
#   docker build -f docker/cpu.Dockerfile -t kasatune:cpu .
#   docker run --rm -v "$PWD:/workspace" --user "$(id -u):$(id -g)" kasatune:cpu train recipe.yaml
#   docker run --rm -v "$PWD:/workspace" --user "$(id -u):$(id -g)" -p 127.0.0.1:7860:7860 \
#     -e KASATUNE_UI_AUTH=me:secret kasatune:cpu ui . --host 0.0.0.0
FROM python:3.11-slim-trixie

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp/home HF_HOME=/workspace/.cache/huggingface

WORKDIR /opt/kasatune
# torch first and by itself: the build for the CPU is in an index of its own.
COPY docker/torch-cpu.lock docker/
RUN pip install --no-deps --require-hashes --index-url https://download.pytorch.org/whl/cpu -r docker/torch-cpu.lock
COPY requirements.lock .
RUN pip install --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --no-build-isolation . && pip check && kasatune --version

WORKDIR /workspace
ENTRYPOINT ["kasatune"]
CMD ["--help"]
