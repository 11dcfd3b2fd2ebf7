# rarefy with Ray for NVIDIA GPUs: docker build -f jobs/docker/cuda.Dockerfile -t rarefy:cuda .
# PyPI's torch brings its own CUDA libraries, so that the machine adds only its driver, by the NVIDIA container runtime.
FROM python:3.11.13-slim-bookworm

# Triton needs g++ to build the GPU kernels at first use; KubeRay's probes use wget. Not pinned, because Debian removes
# old versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home rarefy

ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE NOTICE ./
COPY manifests manifests
COPY pipeline pipeline
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[cluster,s3,gcs,hub]' \
    && rm -rf build

USER 1000
WORKDIR /home/rarefy
CMD ["rarefy", "--help"]
